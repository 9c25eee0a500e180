// CUDA's words for plain C++, so that the tests can run the kernels of csrc/cuda on the host.
//
// The threads of a block are fibers on one thread of the operating system, and blocks run one after
// the other. A fiber runs until it waits for others; then runs the first of the order (ascending,
// descending or shuffled) that can. So a missing barrier gives, in one order or the other, a wrong
// result, and a barrier that some threads never reach is an error that names the kernel.
#pragma once

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <type_traits>
#include <vector>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define __grid_constant__
#define __align__(bytes) __attribute__((aligned(bytes)))

using cudaStream_t = struct CUstream_st*;

// --------------------------------------------------------------------------------------------
// Vectors, aligned as on the device: the tests' build checks the alignment of every access.

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(8) uint2 {
  unsigned x, y;
};
struct uint3 {
  unsigned x, y, z;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct dim3 {
  unsigned x = 1, y = 1, z = 1;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

constexpr float2 make_float2(float x, float y) { return {x, y}; }
constexpr float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
constexpr double2 make_double2(double x, double y) { return {x, y}; }
constexpr int2 make_int2(int x, int y) { return {x, y}; }
constexpr int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
constexpr uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
constexpr uint3 make_uint3(unsigned x, unsigned y, unsigned z) { return {x, y, z}; }
constexpr uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// --------------------------------------------------------------------------------------------
// The running thread. One launch runs at a time, so that these are plain variables.

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;
constexpr int warpSize = 32;

namespace matcalc::cuda {
namespace emulation {

constexpr int kMaxThreads = 1024;       // of a block
constexpr int kMaxShared = 232 * 1024;  // bytes, at least what any device has
constexpr unsigned kAllLanes = 0xffffffff;

enum class Order { kAscending, kDescending, kShuffled };

struct Launch {
  std::string name;
  int64_t blocks;
  int threads;
  size_t shared_bytes;
};

void set_order(Order order);          // of the threads, from the next launch on
void set_shared_limit(size_t bytes);  // the most a block can ask for
std::vector<Launch> take_launches();  // since the last call

// The `guard` bytes behind the first `bytes` of this memory, which no kernel may write: looked at
// after each launch.
void add_guard(void* memory, size_t bytes, size_t guard);
void remove_guard(void* memory);

// Runs body(context) in every thread of every block. What a thread throws comes out of here.
void run_kernel(const char* name, int64_t blocks, int threads, size_t shared_bytes,
                void (*body)(void*), void* context);

template <class Body>
void run(const char* name, int64_t blocks, int threads, size_t shared_bytes, Body&& body) {
  using Plain = std::remove_reference_t<Body>;
  run_kernel(
      name, blocks, threads, shared_bytes, [](void* context) { (*static_cast<Plain*>(context))(); },
      const_cast<void*>(static_cast<const void*>(std::addressof(body))));
}

bool in_kernel();

// Ends the launch with a std::runtime_error that names kernel, block and thread. No stack of the
// block is unwound: a kernel's variables own nothing. Outside a kernel it only throws.
[[noreturn]] void fail(const std::string& what);

// A collective of the lanes in `mask`: everyone's `mine`, lane by lane, `bytes` apart. A lane that
// has ended or is not in the mask shows 0xFF in every byte. Valid until this lane's next
// collective.
const void* exchange(const char* what, unsigned mask, const void* mine, size_t bytes);

template <class T>
const T* warp_exchange(const T& mine) {
  static_assert(std::is_trivially_copyable_v<T> && alignof(T) <= 16);
  return static_cast<const T*>(exchange("warp_exchange", kAllLanes, &mine, sizeof(T)));
}

struct Votes {
  int arrived, yes;
};
// A barrier of all live threads of the block, in which each has a vote.
Votes block_barrier(const char* what, bool vote);

// PTX's bar.sync: barrier `id`, 1 to 15, opens when this many threads have come to it.
void named_barrier(int id, int threads);

void wait_for_others();
void end_wait();

// Waits until `predicate` holds; others make it hold meanwhile.
template <class Predicate>
void wait_until(Predicate&& predicate) {
  while (!predicate()) wait_for_others();
  end_wait();
}

// Says that what others wait for may have come about. Those before the running thread in the order
// then go on at once; without this they do when no other thread can.
void notify();

void* shared_begin();                     // of the block's shared memory, aligned to 1024 bytes
uint32_t shared_address(const void* at);  // offset in it
void* shared_pointer(uint32_t address);

inline unsigned lane() { return threadIdx.x % warpSize; }

}  // namespace emulation

// The block's shared memory as a T, filled with 0xFF before the block begins: NaNs of every kind.
template <class T>
inline T& shared_memory() {
  return *static_cast<T*>(emulation::shared_begin());
}

}  // namespace matcalc::cuda

// --------------------------------------------------------------------------------------------
// Barriers, votes, shuffles

inline void __syncthreads() { matcalc::cuda::emulation::block_barrier("__syncthreads", false); }
inline int __syncthreads_or(int vote) {
  return matcalc::cuda::emulation::block_barrier("__syncthreads_or", vote != 0).yes > 0;
}
inline int __syncthreads_and(int vote) {
  const auto votes = matcalc::cuda::emulation::block_barrier("__syncthreads_and", vote != 0);
  return votes.yes == votes.arrived;
}
inline int __syncthreads_count(int vote) {
  return matcalc::cuda::emulation::block_barrier("__syncthreads_count", vote != 0).yes;
}
inline void __syncwarp(unsigned mask = 0xffffffff) {
  const char nothing = 0;
  matcalc::cuda::emulation::exchange("__syncwarp", mask, &nothing, sizeof(nothing));
}

inline unsigned __ballot_sync(unsigned mask, int vote) {
  const char mine = vote != 0;
  const char* votes = static_cast<const char*>(
      matcalc::cuda::emulation::exchange("__ballot_sync", mask, &mine, sizeof(mine)));
  unsigned ballot = 0;
  for (int lane = 0; lane < warpSize; ++lane) ballot |= (votes[lane] == 1 ? 1u : 0u) << lane;
  return ballot;
}
inline int __any_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote) != 0; }
inline int __all_sync(unsigned mask, int vote) { return __ballot_sync(mask, vote == 0) == 0; }

template <class T>
concept ShuffledByCuda =
    std::is_arithmetic_v<T> && (sizeof(T) == 4 || sizeof(T) == 8) && !std::is_same_v<T, bool>;

// Segments of `width` lanes, a power of two, shuffle apart.
template <ShuffledByCuda T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  const unsigned lane = matcalc::cuda::emulation::lane();
  const unsigned in_segment = static_cast<unsigned>(width) - 1;
  const T* all = static_cast<const T*>(
      matcalc::cuda::emulation::exchange("__shfl_sync", mask, &value, sizeof(T)));
  return all[(lane & ~in_segment) | (static_cast<unsigned>(source) & in_segment)];
}
template <ShuffledByCuda T>
T __shfl_xor_sync(unsigned mask, T value, int with, int width = warpSize) {
  const unsigned lane = matcalc::cuda::emulation::lane();
  const unsigned source = lane ^ static_cast<unsigned>(with);
  const T* all = static_cast<const T*>(
      matcalc::cuda::emulation::exchange("__shfl_xor_sync", mask, &value, sizeof(T)));
  return source <= (lane | (static_cast<unsigned>(width) - 1)) ? all[source] : value;
}
template <ShuffledByCuda T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = warpSize) {
  const unsigned lane = matcalc::cuda::emulation::lane();
  const T* all = static_cast<const T*>(
      matcalc::cuda::emulation::exchange("__shfl_down_sync", mask, &value, sizeof(T)));
  return lane + by <= (lane | (static_cast<unsigned>(width) - 1)) ? all[lane + by] : value;
}
template <ShuffledByCuda T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = warpSize) {
  const unsigned lane = matcalc::cuda::emulation::lane();
  const T* all = static_cast<const T*>(
      matcalc::cuda::emulation::exchange("__shfl_up_sync", mask, &value, sizeof(T)));
  return (lane & (static_cast<unsigned>(width) - 1)) >= by ? all[lane - by] : value;
}

// --------------------------------------------------------------------------------------------
// Memory and numbers

inline void __threadfence() {}
inline void __threadfence_block() {}

template <class T>
T __ldg(const T* at) {
  return *at;
}
template <class T>
T __ldcs(const T* at) {
  return *at;
}
template <class T>
T __ldcg(const T* at) {
  return *at;
}
template <class T>
void __stcs(T* at, T value) {
  *at = value;
}

template <class T>
concept AddedByCuda =
    std::is_same_v<T, int> || std::is_same_v<T, unsigned> || std::is_same_v<T, unsigned long long>;

template <AddedByCuda T>
T atomicAdd(T* at, std::type_identity_t<T> value) {
  const T old = *at;
  *at =
      static_cast<T>(static_cast<unsigned long long>(old) + static_cast<unsigned long long>(value));
  return old;
}

inline unsigned __float_as_uint(float value) { return std::bit_cast<unsigned>(value); }
inline float __uint_as_float(unsigned value) { return std::bit_cast<float>(value); }
inline int __float_as_int(float value) { return std::bit_cast<int>(value); }
inline float __int_as_float(int value) { return std::bit_cast<float>(value); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline int __clz(int value) {
  return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value));
}

template <class T>
concept ComparedByCuda = std::is_arithmetic_v<T> && sizeof(T) >= 4;

// NaNs as fmin and fmax have them.
template <ComparedByCuda T>
constexpr T min(T a, T b) {
  return b < a || a != a ? b : a;
}
template <ComparedByCuda T>
constexpr T max(T a, T b) {
  return a < b || a != a ? b : a;
}
