// Kernels that use the emulation rightly and wrongly; test_emulation_basics.py says what must come
// of each. A kernel is run by name, and gives one number for each thread.
#include <array>
#include <stdexcept>
#include <utility>

#include "../../csrc/cuda/runtime.h"
#include "control.h"
#include "cuda_emulation.h"

namespace matcalc::cuda::emulation {
namespace {

using Numbers = std::array<double, kMaxThreads>;  // in shared memory: one for each thread

double index() { return blockIdx.x * 10000.0 + threadIdx.x; }
double sizes() { return gridDim.x * 10000.0 + blockDim.x; }

double reverse() {
  Numbers& numbers = shared_memory<Numbers>();
  numbers[threadIdx.x] = threadIdx.x;
  __syncthreads();
  return numbers[blockDim.x - 1 - threadIdx.x];
}
double reverse_without_barrier() {
  Numbers& numbers = shared_memory<Numbers>();
  numbers[threadIdx.x] = threadIdx.x;
  return numbers[blockDim.x - 1 - threadIdx.x];
}
// Warps meet among themselves, as often as they like, but not with each other.
double reverse_with_warp_barriers() {
  Numbers& numbers = shared_memory<Numbers>();
  __syncwarp();
  numbers[threadIdx.x] = threadIdx.x;
  __syncwarp();
  __syncwarp();
  return numbers[blockDim.x - 1 - threadIdx.x];
}
// The second write may come before the first has been read.
double reuse_without_barrier() {
  Numbers& numbers = shared_memory<Numbers>();
  numbers[threadIdx.x] = threadIdx.x;
  __syncthreads();
  const double read = numbers[blockDim.x - 1 - threadIdx.x];
  numbers[threadIdx.x] = -1;
  return read;
}
double many_barriers() {
  Numbers& numbers = shared_memory<Numbers>();
  numbers[threadIdx.x] = threadIdx.x;
  for (int i = 0; i < 50; ++i) {
    __syncthreads();
    const double next = numbers[(threadIdx.x + 1) % blockDim.x];
    __syncthreads();
    numbers[threadIdx.x] = next;
  }
  return numbers[threadIdx.x];
}

// The votes of a block: thread 3 says yes, and with `count` every third.
double block_or() { return __syncthreads_or(threadIdx.x == 3 ? 8 : 0); }
double block_and() { return __syncthreads_and(threadIdx.x != 3); }
double block_and_of_all() { return __syncthreads_and(2); }
double block_count() {
  const int first = __syncthreads_count(threadIdx.x % 3 == 0);
  const int second = __syncthreads_count(threadIdx.x == 0);
  return first * 10000.0 + second;
}

double ballot() { return __ballot_sync(0xffffffff, threadIdx.x % 3 == 0); }
double any() { return __any_sync(0xffffffff, threadIdx.x == 40); }
double all() { return __all_sync(0xffffffff, threadIdx.x != 40); }
// Two halves of a warp, each with collectives of its own.
double half_ballots() {
  if (threadIdx.x % 32 < 16) return __ballot_sync(0xffff, threadIdx.x % 2);
  __syncwarp(0xffff0000);
  return __ballot_sync(0xffff0000, threadIdx.x % 4 == 0);
}

double shuffle() { return __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x), 5); }
double shuffle_in_eights() { return __shfl_sync(0xffffffff, threadIdx.x * 0.5, 11, 8); }
double shuffle_xor() { return __shfl_xor_sync(0xffffffff, static_cast<float>(threadIdx.x), 9); }
double shuffle_xor_in_fours() {
  return static_cast<double>(__shfl_xor_sync(0xffffffff, uint64_t{threadIdx.x}, 5, 4));
}
double shuffle_down() { return __shfl_down_sync(0xffffffff, threadIdx.x, 3); }
double shuffle_down_in_eights() { return __shfl_down_sync(0xffffffff, threadIdx.x, 3, 8); }
double shuffle_up() { return __shfl_up_sync(0xffffffff, threadIdx.x, 3); }
double shuffle_up_in_eights() { return __shfl_up_sync(0xffffffff, threadIdx.x, 3, 8); }
double sum_of_warp() {
  double sum = threadIdx.x;
  for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffff, sum, offset);
  return sum;
}
double shuffle_from_ended() {
  if (threadIdx.x % 32 == 7) return 0;
  return __shfl_sync(0xffffffff, 1.0f, 7);
}

struct Fragment {
  double rows[6];
};
double exchange_fragments() {
  Fragment mine;
  for (int i = 0; i < 6; ++i) mine.rows[i] = threadIdx.x * 10 + i;
  const Fragment* first = warp_exchange(mine);
  const double sum = first[0].rows[1] + first[31].rows[2];
  const int* second = warp_exchange(static_cast<int>(threadIdx.x));
  return sum + second[threadIdx.x % 32] - threadIdx.x;
}

// Odd threads end; the others' barriers count on them no more.
double half_ended() {
  if (threadIdx.x % 2 == 1) return 1;
  __syncthreads();
  return __ballot_sync(0xffffffff, 1) + __syncthreads_count(1) * 0.001;
}
double ended_while_waited_for() {
  if (threadIdx.x == blockDim.x - 1) return 1;
  __syncthreads();
  return 2;
}

double two_barriers() {
  if (threadIdx.x == 0) {
    __syncthreads();
  } else {
    __syncthreads_or(1);
  }
  return 0;
}
double two_collectives() {
  if (threadIdx.x == 0) return __shfl_sync(0xffffffff, 1, 0);
  return __ballot_sync(0xffffffff, 1);
}
double outside_of_mask() { return __ballot_sync(0x1, 1); }
double lost_lane() {
  if (threadIdx.x == 2) __syncwarp(0x5);
  __syncthreads();
  return 0;
}

// One producer fills two slots in turn, which all the others read. Were the reads of both slots
// counted together, a fast reader's would pass for a slow one's.
struct Ring {
  int filled;
  int read[2];
  double slots[2];
};
double ring(bool apart) {
  Ring& ring = shared_memory<Ring>();
  if (threadIdx.x == 0) ring.filled = ring.read[0] = ring.read[1] = 0;
  __syncthreads();
  const int readers = static_cast<int>(blockDim.x) - 1;
  double sum = 0;
  for (int step = 0; step < 6; ++step) {
    if (threadIdx.x == 0) {
      const int read = (apart ? step / 2 : step - 1) * readers;
      wait_until([&] { return ring.read[apart ? step % 2 : 0] >= read; });
      ring.slots[step % 2] = step + 1;
      ring.filled = step + 1;
      notify();
    } else {
      wait_until([&] { return ring.filled > step; });
      sum += ring.slots[step % 2];
      atomicAdd(&ring.read[apart ? step % 2 : 0], 1);
      notify();
    }
  }
  return sum;
}
double ring_with_two_counts() { return ring(true); }
double ring_with_one_count() { return ring(false); }
// Says that the number is there, and only then writes it.
double notify_too_early() {
  Ring& ring = shared_memory<Ring>();
  if (threadIdx.x == 0) ring.filled = 0;
  __syncthreads();
  if (threadIdx.x == 0) {
    ring.filled = 1;
    notify();
    ring.slots[0] = 7;
    return 7;
  }
  wait_until([&] { return ring.filled == 1; });
  return ring.slots[0];
}
double wait_for_nothing() {
  if (threadIdx.x == 4) wait_until([] { return false; });
  return 0;
}
// Each of two halves meets alone.
double named_barriers() {
  Numbers& numbers = shared_memory<Numbers>();
  const unsigned half = blockDim.x / 2, mine = threadIdx.x / half;
  numbers[threadIdx.x] = threadIdx.x;
  named_barrier(static_cast<int>(mine) + 1, static_cast<int>(half));
  return numbers[mine * half + half - 1 - threadIdx.x % half];
}
double named_barrier_of_too_many() {
  named_barrier(1, static_cast<int>(blockDim.x) + 1);
  return 0;
}

double throw_in_thread_3() {
  if (threadIdx.x == 3) throw std::out_of_range("thread 3 has thrown");
  __syncthreads();
  return 0;
}
double fail_in_thread_3() {
  if (threadIdx.x == 3) fail("thread 3 does not like it");
  return 0;
}

double read_poison() { return shared_memory<Numbers>()[threadIdx.x]; }
double write_then_read_poison() {
  Numbers& numbers = shared_memory<Numbers>();
  const double before = numbers[threadIdx.x];
  numbers[threadIdx.x] = 1;
  return before;
}
double read_float_poison() { return shared_memory<std::array<float, kMaxThreads>>()[threadIdx.x]; }
double write_behind_shared() {
  unsigned char* bytes = &shared_memory<unsigned char>();
  if (threadIdx.x == 0) bytes[64] = 0xff;
  return 0;
}
double shared_addresses() {
  Numbers& numbers = shared_memory<Numbers>();
  const uint32_t address = shared_address(&numbers[threadIdx.x]);
  return static_cast<double*>(shared_pointer(address)) == &numbers[threadIdx.x] ? address : -1.0;
}
double address_of_local() {
  double local = 0;
  return shared_address(&local);
}

// The compiler must not see through these.
volatile int zero = 0, large = 40, most = INT32_MAX;
const float* volatile null = nullptr;

double read_aligned() {
  auto& floats = shared_memory<std::array<float, 64>>();
  floats[threadIdx.x % 64] = 0;
  __syncthreads();
  return reinterpret_cast<const float4*>(&floats[4 * (threadIdx.x % 16)])->w;
}
double read_misaligned() {
  auto& floats = shared_memory<std::array<float, 64>>();
  return reinterpret_cast<const float4*>(&floats[2 + zero])->x;
}
double read_null() { return *null; }
double shift_too_far() { return 1 << large; }
double divide_by_zero() { return 1 / zero; }
double sum_too_large() { return most + 1; }
double index_too_large() {
  int numbers[4] = {};
  return numbers[large];
}

double add_atomically() {
  unsigned& sum = shared_memory<unsigned>();
  if (threadIdx.x == 0) sum = 0;
  __syncthreads();
  atomicAdd(&sum, 3u);
  __syncthreads();
  return sum;
}
double numbers() {  // 1 where all is as it should be
  const float nan = __uint_as_float(0x7fc00000u);
  const int64_t wide = 1;
  return __popc(0xf0f0u) == 8 && __ffs(8) == 4 && __ffs(0) == 0 && __clz(1) == 31 &&
         __clz(0) == 32 && __float_as_uint(1.0f) == 0x3f800000u && __float_as_int(-0.0f) < 0 &&
         __int_as_float(0x40000000) == 2.0f && min(2, 3) == 2 && max(wide, wide + 1) == 2 &&
         min(nan, 1.0f) == 1.0f && max(1.0f, nan) == 1.0f && min(2u, 1u) == 1u &&
         make_float4(1, 2, 3, 4).w == 4 && sizeof(uint3) == 12 && alignof(double2) == 16;
}

using Kernel = double (*)();
constexpr std::pair<const char*, Kernel> kKernels[] = {
    {"index", index},
    {"sizes", sizes},
    {"reverse", reverse},
    {"reverse_without_barrier", reverse_without_barrier},
    {"reverse_with_warp_barriers", reverse_with_warp_barriers},
    {"reuse_without_barrier", reuse_without_barrier},
    {"many_barriers", many_barriers},
    {"block_or", block_or},
    {"block_and", block_and},
    {"block_and_of_all", block_and_of_all},
    {"block_count", block_count},
    {"ballot", ballot},
    {"any", any},
    {"all", all},
    {"half_ballots", half_ballots},
    {"shuffle", shuffle},
    {"shuffle_in_eights", shuffle_in_eights},
    {"shuffle_xor", shuffle_xor},
    {"shuffle_xor_in_fours", shuffle_xor_in_fours},
    {"shuffle_down", shuffle_down},
    {"shuffle_down_in_eights", shuffle_down_in_eights},
    {"shuffle_up", shuffle_up},
    {"shuffle_up_in_eights", shuffle_up_in_eights},
    {"sum_of_warp", sum_of_warp},
    {"shuffle_from_ended", shuffle_from_ended},
    {"exchange_fragments", exchange_fragments},
    {"half_ended", half_ended},
    {"ended_while_waited_for", ended_while_waited_for},
    {"two_barriers", two_barriers},
    {"two_collectives", two_collectives},
    {"outside_of_mask", outside_of_mask},
    {"lost_lane", lost_lane},
    {"ring_with_two_counts", ring_with_two_counts},
    {"ring_with_one_count", ring_with_one_count},
    {"notify_too_early", notify_too_early},
    {"wait_for_nothing", wait_for_nothing},
    {"named_barriers", named_barriers},
    {"named_barrier_of_too_many", named_barrier_of_too_many},
    {"throw_in_thread_3", throw_in_thread_3},
    {"fail_in_thread_3", fail_in_thread_3},
    {"read_poison", read_poison},
    {"write_then_read_poison", write_then_read_poison},
    {"read_float_poison", read_float_poison},
    {"write_behind_shared", write_behind_shared},
    {"shared_addresses", shared_addresses},
    {"address_of_local", address_of_local},
    {"read_aligned", read_aligned},
    {"read_misaligned", read_misaligned},
    {"read_null", read_null},
    {"shift_too_far", shift_too_far},
    {"divide_by_zero", divide_by_zero},
    {"sum_too_large", sum_too_large},
    {"index_too_large", index_too_large},
    {"add_atomically", add_atomically},
    {"numbers", numbers},
};

// What the host side of an op can do wrongly: a kernel writes past the end of working memory.
double write_behind_workspace() {
  const Device device(0);
  Workspace workspace(device);
  double* numbers = static_cast<double*>(workspace.take(3 * sizeof(double)));
  run("write_behind_workspace", 1, 4, 0, [&] { numbers[threadIdx.x] = threadIdx.x; });
  return 0;
}
double read_workspace() {
  const Device device(0);
  Workspace workspace(device);
  if (workspace.take(0) != nullptr) return 0;
  workspace.take(3);
  const double* number = static_cast<const double*>(workspace.take(sizeof(double)));
  return reinterpret_cast<uintptr_t>(number) % 256 == 0 ? *number : 0;
}
double shared_limit() { return static_cast<double>(Device(0).limits().shared_per_block); }
double capability() {
  const Device device(0);
  const Limits& limits = device.limits();
  return limits.major * 100 + limits.minor * 10 + limits.multiprocessors;
}
double tf32() { return tf32_allowed(); }

constexpr std::pair<const char*, Kernel> kHostFunctions[] = {
    {"write_behind_workspace", write_behind_workspace},
    {"read_workspace", read_workspace},
    {"shared_limit", shared_limit},
    {"capability", capability},
    {"tf32", tf32},
};

}  // namespace

std::vector<double> run_basic(const std::string& name, int64_t blocks, int threads,
                              size_t shared_bytes) {
  for (const auto& [known, function] : kHostFunctions) {
    if (name == known) return {function()};
  }
  for (const auto& [known, kernel] : kKernels) {
    if (name != known) continue;
    std::vector<double> out(static_cast<size_t>(blocks) * static_cast<size_t>(threads));
    run(known, blocks, threads, shared_bytes, [&out, kernel = kernel] {
      out[static_cast<size_t>(blockIdx.x) * blockDim.x + threadIdx.x] = kernel();
    });
    return out;
  }
  throw std::invalid_argument("there is no kernel " + name);
}

}  // namespace matcalc::cuda::emulation
