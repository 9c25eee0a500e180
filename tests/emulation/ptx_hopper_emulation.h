// The twins of csrc/cuda/ptx_hopper.cuh on the host, as the PTX ISA describes the instructions.
//
// What is asynchronous happens late here, and what must not be touched meanwhile is spoilt: memory
// that a copy will fill, and the sums of a product, are NaNs until somebody has waited for them. An
// operand or a box that changes while it is being read is an error, as is every use of a barrier or
// a fence that the protocol forbids and that can be seen.
#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <deque>
#include <limits>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

#include "../../csrc/cuda/tensor_map.h"
#include "../../csrc/numbers.h"
#include "cuda_emulation.h"

namespace matcalc::cuda::hopper {

// ---------------------------------------------------------------------------------------------
// Tensor maps

struct TensorMap {
  unsigned char* data;
  uint64_t bytes;  // of a number
  uint64_t size[5], stride[4];
  uint32_t box[2];
};

// The requirements of cuTensorMapEncodeTiled.
inline bool encode_tensor_map(const TensorMapShape& shape, TensorMap* map) {
  const uint64_t bytes = static_cast<uint64_t>(dtype_size(shape.dtype));
  if (reinterpret_cast<uintptr_t>(shape.data) % 16 != 0) return false;
  for (uint64_t size : shape.size) {
    if (size == 0 || size > uint64_t{1} << 32) return false;
  }
  for (uint64_t stride : shape.stride) {
    if (stride == 0 || stride % 16 != 0 || stride >= uint64_t{1} << 40) return false;
  }
  for (uint32_t box : shape.box) {
    if (box == 0 || box > 256) return false;
  }
  const uint64_t line = shape.box[0] * bytes;
  if (line % 16 != 0 || line > 128) return false;
  map->data = static_cast<unsigned char*>(const_cast<void*>(shape.data));
  map->bytes = bytes;
  std::copy(std::begin(shape.size), std::end(shape.size), map->size);
  std::copy(std::begin(shape.stride), std::end(shape.stride), map->stride);
  std::copy(std::begin(shape.box), std::end(shape.box), map->box);
  return true;
}

// An mbarrier. The fields' places are the emulation's own; fresh shared memory is no barrier.
struct alignas(8) Barrier {
  uint64_t state;
};

namespace emulated {

using emulation::fail;

struct Phase {
  uint64_t parity, arrivals, missing;  // arrivals: of a phase
  int64_t bytes;                       // that are still to come

  static constexpr uint64_t kMask = (1 << 20) - 1;
  static constexpr uint64_t kMark = 1;  // in the uppermost two bits, which are 3 in fresh memory

  static Phase of(const Barrier& barrier) {
    const uint64_t state = barrier.state;
    if (state >> 62 != kMark) fail("a barrier in shared memory is used before it is initialised");
    return {state & 1, state >> 1 & kMask, state >> 21 & kMask,
            static_cast<int64_t>(state >> 41 & kMask) - static_cast<int64_t>(kMask / 2)};
  }
  void put(Barrier& barrier) {
    if (missing == 0 && bytes == 0) {
      parity ^= 1;
      missing = arrivals;
    }
    const uint64_t bytes_field = static_cast<uint64_t>(bytes + static_cast<int64_t>(kMask / 2));
    if (bytes_field > kMask) fail("a barrier waits for more bytes than it can count");
    barrier.state = parity | arrivals << 1 | missing << 21 | bytes_field << 41 | kMark << 62;
  }
  void arrive() {
    if (missing == 0) fail("more threads arrive at a barrier than it was made for");
    --missing;
  }
};

// A box on its way between memory and shared memory.
struct Copy {
  TensorMap map;
  std::array<int, 5> at;
  uint32_t shared;
  Barrier* barrier;                 // of a load
  std::vector<unsigned char> seen;  // of a store: what shared memory held when it began

  uint32_t box_bytes() const { return map.box[0] * map.box[1] * static_cast<uint32_t>(map.bytes); }
  // Calls body(16 bytes of shared memory, their place in the array, bytes of them inside of it).
  template <class Body>
  void for_each_chunk(Body&& body) const {
    const uint64_t chunks = map.box[0] * map.bytes / 16;
    for (uint32_t line = 0; line < map.box[1]; ++line) {
      uint64_t offset = 0;
      bool inside = true;
      for (size_t d = 1; d < 5; ++d) {
        const uint64_t coordinate = static_cast<uint64_t>(at[d]) + (d == 1 ? line : 0);
        inside = inside && coordinate < map.size[d];
        offset += coordinate * map.stride[d - 1];
      }
      for (uint64_t chunk = 0; chunk < chunks; ++chunk) {
        const uint64_t first = static_cast<uint64_t>(at[0]) * map.bytes + chunk * 16;
        const uint64_t end = map.size[0] * map.bytes;
        const uint64_t valid = !inside || first >= end ? 0 : std::min<uint64_t>(end - first, 16);
        // Lines of less than 128 bytes are not used here, so that lines lie 128 bytes apart.
        const uint32_t linear = shared + line * 128 + static_cast<uint32_t>(chunk) * 16;
        const uint32_t address = (linear & ~0x70u) | ((linear ^ linear >> 3) & 0x70u);
        body(static_cast<unsigned char*>(emulation::shared_pointer(address)),
             map.data + (valid == 0 ? 0 : offset + first), valid);
      }
    }
  }
  void check() const {
    if (map.box[0] * map.bytes != 128) fail("a box whose lines are not 128 bytes long");
    if (shared % 1024 != 0) fail("a box that does not begin where its swizzle does");
    for (int coordinate : at) {
      if (coordinate < 0) fail("a box at a negative coordinate");
    }
  }
  std::vector<unsigned char> bytes_in_shared() const {
    const auto* begin = static_cast<const unsigned char*>(emulation::shared_pointer(shared));
    return {begin, begin + box_bytes()};
  }
  void load() const {
    for_each_chunk([](unsigned char* to, const unsigned char* from, uint64_t valid) {
      std::memset(to, 0, 16);
      if (valid != 0) std::memcpy(to, from, valid);
    });
  }
  void store() const {
    if (bytes_in_shared() != seen) fail("shared memory changes while a copy reads it");
    for_each_chunk([](const unsigned char* from, unsigned char* to, uint64_t valid) {
      if (valid != 0) std::memcpy(to, from, valid);
    });
  }
};

// One wgmma.mma_async of a warpgroup.
struct Product {
  uint64_t a, b;
  int n;
  int transposed_a, transposed_b;
  bool add, bf16;
  int started = 0;  // by that many threads
  bool done = false;
  std::vector<float> seen_a, seen_b;  // the operands when it began

  bool same(const Product& other) const {
    return a == other.a && b == other.b && n == other.n && add == other.add &&
           transposed_a == other.transposed_a && transposed_b == other.transposed_b &&
           bf16 == other.bf16;
  }

  // width x 16 numbers from shared memory, in the canonical layouts for the 128-byte swizzle and
  // T = 8 numbers to 16 bytes:
  //   K-major   ((8, m), (T, 2k)) : ((8T, SBO), (1, T))
  //   MN-major  ((T, 8, m), (8, k)) : ((1, T, LBO), (8T, SBO))
  std::vector<float> read(uint64_t descriptor, int width, int transposed) const {
    const auto field = [&](int bit) {
      return static_cast<uint32_t>(descriptor >> bit & 0x3fff) << 4;
    };
    const uint32_t start = field(0), leading = field(16), stride = field(32);
    if (descriptor >> 62 != 1) fail("a matrix descriptor without the 128-byte swizzle");
    if ((descriptor & 0x3fffc000c000c000) != 0) fail("unused bits of a matrix descriptor are set");
    if ((start & 0x380) != 0) fail("a matrix descriptor needs a base offset");
    std::vector<float> numbers(static_cast<size_t>(width) * 16);
    for (int w = 0; w < width; ++w) {
      for (int k = 0; k < 16; ++k) {
        const uint32_t uw = static_cast<uint32_t>(w), uk = static_cast<uint32_t>(k);
        const uint32_t offset =
            transposed == 0
                ? 2 * (uw % 8 * 64 + uk % 8 + uk / 8 * 8) + uw / 8 * stride
                : 2 * (uw % 8 + uw / 8 % 8 * 8 + uk % 8 * 64) + uw / 64 * leading + uk / 8 * stride;
        const uint32_t linear = start + offset;
        const uint32_t address = linear ^ (linear & 0x380) >> 3;
        uint16_t bits;
        std::memcpy(&bits, emulation::shared_pointer(address), 2);
        numbers[static_cast<size_t>(w) * 16 + static_cast<size_t>(k)] =
            bf16 ? widen(Bf16{bits}) : widen(F16{bits});
      }
    }
    return numbers;
  }
};

inline bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// c [64, n] += a [64, 16] b [n, 16] transposed
inline void multiply_add(float* c, const float* a, const float* b, int n) {
  std::vector<float> columns(static_cast<size_t>(n) * 16);  // b, [16, n]
  for (int k = 0; k < 16; ++k) {
    for (int j = 0; j < n; ++j) columns[static_cast<size_t>(k * n + j)] = b[j * 16 + k];
  }
  for (int i = 0; i < 64; ++i) {
    for (int k = 0; k < 16; ++k) {
      const float factor = a[i * 16 + k];
      const float* column = columns.data() + k * n;
      for (int j = 0; j < n; ++j) c[i * n + j] += factor * column[j];
    }
  }
}

struct WarpgroupThread {
  float* sums = nullptr;      // of the products under way
  std::vector<float> values;  // what they will hold
  size_t started = 0;         // products
  size_t awaited = 0;         // of these are known to be done
  std::deque<size_t> groups;  // where the groups that are not awaited end
  bool fenced = false;        // the sums may be given to a product
  int fences = 0;             // publish_to_copies since the last store_box
};

struct Warpgroup {
  std::deque<Product> products;
  size_t forgotten = 0;  // products before the first of these
  std::array<WarpgroupThread, 128> threads;

  Product& at(size_t index) { return products[index - forgotten]; }
  size_t end() const { return forgotten + products.size(); }

  // Every warp has 16 rows; lane l has, of each 8 columns, numbers 2 (l % 4) and the next of rows
  // l / 4 and l / 4 + 8.
  static size_t place(int thread, int i, int n) {
    const int row = thread / 32 * 16 + thread % 32 / 4 + (i % 4 >= 2 ? 8 : 0);
    const int col = i / 4 * 8 + thread % 4 * 2 + i % 2;
    return static_cast<size_t>(row * n + col);
  }

  void finish(Product& product) {
    if (product.done) return;
    const std::vector<float> a = product.read(product.a, 64, product.transposed_a);
    const std::vector<float> b = product.read(product.b, product.n, product.transposed_b);
    if (!same_bits(a, product.seen_a) || !same_bits(b, product.seen_b)) {
      fail("shared memory changes while a product reads it");
    }
    const int sums = product.n / 2;
    std::vector<float> c(static_cast<size_t>(64 * product.n));
    for (int thread = 0; product.add && thread < 128; ++thread) {
      for (int i = 0; i < sums; ++i) {
        c[place(thread, i, product.n)] = threads[static_cast<size_t>(thread)].values[i];
      }
    }
    multiply_add(c.data(), a.data(), b.data(), product.n);
    for (int thread = 0; thread < 128; ++thread) {
      for (int i = 0; i < sums; ++i) {
        threads[static_cast<size_t>(thread)].values[i] = c[place(thread, i, product.n)];
      }
    }
    product.done = true;
  }
};

// What the threads of the running block have under way.
struct StoreThread {
  std::vector<Copy> open;
  std::deque<std::vector<Copy>> groups;
};
struct Waiter {
  const Barrier* barrier;
  uint32_t parity;
};
struct Block {
  std::vector<Copy> loads;
  std::vector<Waiter> waiters;
  std::array<StoreThread, emulation::kMaxThreads> stores;
  std::array<Warpgroup, emulation::kMaxThreads / 128> warpgroups;
};
inline auto block = std::make_unique<Block>();  // too large for a thread's stack

inline Warpgroup& my_warpgroup() { return block->warpgroups[threadIdx.x / 128]; }
inline WarpgroupThread& my_thread() { return my_warpgroup().threads[threadIdx.x % 128]; }

// Where a phase ends that somebody waits for, he goes on at once, before the thread that ended it:
// what it has released too early is then overwritten.
inline void hand_over(const Barrier& barrier, uint64_t parity) {
  const auto waits = [&](const Waiter& other) {
    return other.barrier == &barrier && other.parity == parity;
  };
  if (Phase::of(barrier).parity == parity || std::ranges::none_of(block->waiters, waits)) return;
  emulation::end_wait();
  bool handed_over = false;
  emulation::wait_until([&] { return std::exchange(handed_over, true); });
}

// The loads that this barrier waits for come to their end.
inline void bring(Barrier& barrier) {
  auto& loads = block->loads;
  for (size_t i = 0; i < loads.size();) {
    if (loads[i].barrier != &barrier) {
      ++i;
      continue;
    }
    loads[i].load();
    Phase phase = Phase::of(barrier);
    phase.bytes -= loads[i].box_bytes();
    phase.put(barrier);
    loads.erase(loads.begin() + static_cast<ptrdiff_t>(i));
  }
}

}  // namespace emulated

// ---------------------------------------------------------------------------------------------
// Barriers

inline uint32_t shared_address(const void* pointer) { return emulation::shared_address(pointer); }

inline void init_barrier(Barrier& barrier, int arrivals) {
  // In fresh shared memory: nothing is left of the block before, which may have been given up.
  if (barrier.state == ~uint64_t{0}) emulated::block = std::make_unique<emulated::Block>();
  const uint64_t count = static_cast<uint64_t>(arrivals);
  emulated::Phase{0, count, count, 0}.put(barrier);
}
inline void publish_barriers() {}
inline void arrive(Barrier& barrier) {
  auto phase = emulated::Phase::of(barrier);
  const uint64_t parity = phase.parity;
  phase.arrive();
  phase.put(barrier);
  emulated::hand_over(barrier, parity);
}
inline void arrive_and_expect(Barrier& barrier, int bytes) {
  auto phase = emulated::Phase::of(barrier);
  phase.bytes += bytes;
  phase.arrive();
  phase.put(barrier);
}
inline void wait(Barrier& barrier, uint32_t parity) {
  const auto ended = [&] {
    emulated::bring(barrier);
    return emulated::Phase::of(barrier).parity != parity;
  };
  if (ended()) return;
  auto& waiters = emulated::block->waiters;
  waiters.push_back({&barrier, parity});
  emulation::wait_until(ended);
  waiters.erase(std::ranges::find_if(waiters, [&](const emulated::Waiter& other) {
    return other.barrier == &barrier && other.parity == parity;
  }));
}
inline void sync_threads(int number, int threads) { emulation::named_barrier(number, threads); }

// ---------------------------------------------------------------------------------------------
// Copies

inline void prefetch_map(const TensorMap&) {}

inline void load_box(void* shared, const TensorMap& map, const int (&at)[5], Barrier& barrier) {
  emulated::Copy copy{
      map, {at[0], at[1], at[2], at[3], at[4]}, shared_address(shared), &barrier, {}};
  copy.check();
  emulated::Phase::of(barrier);
  std::memset(shared, 0xff, copy.box_bytes());
  emulated::block->loads.push_back(std::move(copy));
}

inline void store_box(const TensorMap& map, const int (&at)[5], const void* shared) {
  emulated::Copy copy{
      map, {at[0], at[1], at[2], at[3], at[4]}, shared_address(shared), nullptr, {}};
  copy.check();
  for (auto& thread : emulated::my_warpgroup().threads) {
    if (thread.fences == 0) {
      emulated::fail("a copy of what some thread has not published to the copy engine");
    }
    thread.fences = 0;
  }
  copy.seen = copy.bytes_in_shared();
  emulated::block->stores[threadIdx.x].open.push_back(std::move(copy));
}
inline void commit_stores() {
  auto& thread = emulated::block->stores[threadIdx.x];
  thread.groups.push_back(std::move(thread.open));
  thread.open.clear();
}
template <int kGroups>
void wait_for_stores() {
  auto& groups = emulated::block->stores[threadIdx.x].groups;
  while (groups.size() > kGroups) {
    for (const emulated::Copy& copy : groups.front()) copy.store();
    groups.pop_front();
  }
}
inline void publish_to_copies() { ++emulated::my_thread().fences; }

// ---------------------------------------------------------------------------------------------
// Warpgroups

template <int kRegisters>
void give_registers() {
  static_assert(kRegisters % 8 == 0 && kRegisters >= 24 && kRegisters <= 256);
}
template <int kRegisters>
void take_registers() {
  give_registers<kRegisters>();
}

template <int kSums>
void begin_products(float (&)[kSums]) {
  emulated::my_thread().fenced = true;
}

inline void commit_products() {
  auto& thread = emulated::my_thread();
  thread.groups.push_back(thread.started);
}

template <int kGroups, int kSums>
void wait_for_products(float (&sums)[kSums]) {
  emulated::Warpgroup& group = emulated::my_warpgroup();
  emulated::WarpgroupThread& thread = emulated::my_thread();
  while (thread.groups.size() > kGroups) {
    const size_t end = thread.groups.front();
    thread.groups.pop_front();
    for (; thread.awaited < end; ++thread.awaited) {
      const size_t index = thread.awaited;
      emulation::wait_until([&] { return group.at(index).started == 128; });
      group.finish(group.at(index));
    }
  }
  if (thread.awaited == thread.started && thread.sums == sums) {
    std::copy(thread.values.begin(), thread.values.end(), sums);
    thread.sums = nullptr;
    thread.fenced = false;
  }
  const auto behind = [&](const auto& other) { return other.awaited <= group.forgotten; };
  while (!group.products.empty() &&
         std::none_of(group.threads.begin(), group.threads.end(), behind)) {
    group.products.pop_front();
    ++group.forgotten;
  }
}

template <int kTransposedA, int kTransposedB, int kSums, class T>
void multiply(float (&sums)[kSums], uint64_t a, uint64_t b, bool add, T) {
  static_assert(kSums % 4 == 0 && kSums <= 128);
  emulated::Warpgroup& group = emulated::my_warpgroup();
  emulated::WarpgroupThread& thread = emulated::my_thread();
  if (!thread.fenced) emulated::fail("a product of sums that no begin_products has fenced");
  if (thread.sums == nullptr) {
    thread.sums = sums;
    thread.values.assign(sums, sums + kSums);
    std::fill(sums, sums + kSums, std::numeric_limits<float>::quiet_NaN());
  } else if (thread.sums != sums) {
    emulated::fail("the emulation knows products of one set of sums at a time");
  }
  emulated::Product product{a,
                            b,
                            2 * kSums,
                            kTransposedA,
                            kTransposedB,
                            add,
                            sizeof(T) == 2 && std::is_same_v<T, Bf16>,
                            0,
                            false,
                            {},
                            {}};
  if (thread.started == group.end()) {
    product.seen_a = product.read(a, 64, kTransposedA);
    product.seen_b = product.read(b, 2 * kSums, kTransposedB);
    group.products.push_back(std::move(product));
  } else if (!group.at(thread.started).same(product)) {
    emulated::fail("the threads of a warpgroup start different products");
  }
  ++group.at(thread.started).started;
  ++thread.started;
}

}  // namespace matcalc::cuda::hopper
