// The product on the ordinary arithmetic units. Device code; simt.cu plans and launches it.
//
// A block owns a tile of C and walks along the depth kDepth positions at a time. A tile of A and a
// tile of B lie in shared memory, depth outermost, in two buffers: while one is multiplied, the
// next tiles travel from global memory to registers, and from there into the other buffer. Each
// thread keeps a small square of sums in registers. Two loaders bring the tiles:
//
//   PlainLoader    float32, 16 bytes at a time, where pointers, strides and sizes allow it
//   GeneralLoader  element by element, whatever is asked for: every dtype, a scale operand, folded
//                  matrices, several-dimensional indices, operands that are absent
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "gemm.cuh"

namespace matcalc::cuda {

// ---------------------------------------------------------------------------------------------
// Storage.

// Neighbouring elements that are read or written as one.
template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  T items[kCount];
};

// Calls body(T*{}) with the stored type T of a dtype whose sums are kept in Acc: a branch that all
// threads take alike.
template <class Acc, class F>
__device__ __forceinline__ void with_storage(Dtype dtype, F&& body) {
  if constexpr (std::is_same_v<Acc, float>) {
    if (dtype == Dtype::kFloat32) {
      body(static_cast<float*>(nullptr));
    } else if (dtype == Dtype::kBFloat16) {
      body(static_cast<Bf16*>(nullptr));
    } else {
      body(static_cast<F16*>(nullptr));
    }
  } else if constexpr (std::is_same_v<Acc, uint32_t>) {
    if (dtype == Dtype::kInt32) {
      body(static_cast<int32_t*>(nullptr));
    } else if (dtype == Dtype::kInt16) {
      body(static_cast<int16_t*>(nullptr));
    } else if (dtype == Dtype::kInt8) {
      body(static_cast<int8_t*>(nullptr));
    } else {
      body(static_cast<uint8_t*>(nullptr));
    }
  } else if constexpr (std::is_same_v<Acc, uint64_t>) {
    body(static_cast<int64_t*>(nullptr));
  } else {
    body(static_cast<Acc*>(nullptr));
  }
}
template <class Pointer>
using StorageOf = std::remove_pointer_t<Pointer>;

// The dtype of stored accumulators: of partial sums.
template <class Acc>
constexpr Dtype accumulator_dtype() {
  if constexpr (std::is_same_v<Acc, float>) return Dtype::kFloat32;
  if constexpr (std::is_same_v<Acc, double>) return Dtype::kFloat64;
  if constexpr (std::is_same_v<Acc, Complex<float>>) return Dtype::kComplex64;
  if constexpr (std::is_same_v<Acc, Complex<double>>) return Dtype::kComplex128;
  return sizeof(Acc) == 8 ? Dtype::kInt64 : Dtype::kInt32;
}

// What a load leaves in registers. Widening comes later: done at once, it would wait for memory.
template <class Acc>
using Raw = std::conditional_t<std::is_same_v<Acc, float>, uint32_t, Acc>;

template <class Acc, class T>
__device__ __forceinline__ Raw<Acc> raw_of(T stored) {
  if constexpr (!std::is_same_v<Acc, float>) {
    return widen(stored);
  } else if constexpr (std::is_same_v<T, float>) {
    return bits_of(stored);
  } else {
    return stored.bits;
  }
}
template <class Acc, class T>
__device__ __forceinline__ Acc widen_raw(Raw<Acc> raw) {
  if constexpr (!std::is_same_v<Acc, float>) {
    return raw;
  } else if constexpr (std::is_same_v<T, float>) {
    return float_of(raw);
  } else {
    return widen(T{static_cast<uint16_t>(raw)});
  }
}

// Whether position + pack of C can be written as one, for packs of kPack positions along n.
inline bool steps_by(const Offsets& offsets, int64_t multiple) {
  bool all = offsets.table == nullptr;
  for (int d = 0; d < offsets.count; ++d) all = all && offsets.stride[d] % multiple == 0;
  return all;
}
inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}
inline bool stores_packs(const Gemm& gemm, int64_t pack) {
  return gemm.n_c.step() == 1 && steps_by(gemm.m_c, pack) && steps_by(gemm.batch_c, pack) &&
         is_aligned(gemm.c, pack * dtype_size(gemm.dtype_c));
}

template <class Acc>
__device__ __forceinline__ Acc load_bias(const Gemm& gemm, int64_t position) {
  Acc value{};
  with_storage<Acc>(gemm.dtype, [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    value = widen(static_cast<const T*>(gemm.bias)[position * gemm.bias_stride]);
  });
  return value;
}

// ---------------------------------------------------------------------------------------------
// How a product is cut up. The 32 lanes of a warp stand in 4 rows of 8; a lane's sums are packs of
// kPack x kPack, 16 bytes of A against 16 bytes of B, at the distance of all lanes' packs.
template <class A, int kWarpsDown, int kWarpsAcross, int kRows, int kCols, int kGroupCount,
          int kBlocks>
struct Shape {
  using Acc = A;
  static constexpr int kPack = 16 / static_cast<int>(sizeof(Acc));
  static constexpr int kRowPacks = kRows / kPack, kColPacks = kCols / kPack;  // of a thread
  static constexpr int kWarpRows = 4 * kRows, kWarpCols = 8 * kCols;
  static constexpr int kWarpsM = kWarpsDown, kWarpsN = kWarpsAcross;
  static constexpr int kM = kWarpsM * kWarpRows, kN = kWarpsN * kWarpCols;  // the tile of C
  // Positions along the depth of the tiles in shared memory: few, so that what is on its way in
  // registers leaves room for the sums.
  static constexpr int kDepth = sizeof(Acc) == 16 ? 4 : 8;
  // Padding by 16 bytes puts the kDepth columns of a transposing store kDepth different fours of
  // banks apart, and keeps packs aligned.
  static constexpr int kLdA = kM + kPack, kLdB = kN + kPack;
  static constexpr int kGroupThreads = 32 * kWarpsM * kWarpsN;  // they share one tile
  static constexpr int kGroups = kGroupCount;                   // tiles of a block
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kMinBlocks = kBlocks;
  static_assert(kRows % kPack == 0 && kCols % kPack == 0);
  static_assert(kGroups == 1 || kGroupThreads == 32);  // a group waits for itself alone
};

template <class S>
struct Tiles {
  alignas(16) typename S::Acc a[2][S::kDepth][S::kLdA];
  alignas(16) typename S::Acc b[2][S::kDepth][S::kLdB];
};

template <class S>
__device__ __forceinline__ void group_barrier() {
  if constexpr (S::kGroupThreads == 32) {
    __syncwarp();
  } else {
    __syncthreads();
  }
}

struct SimtPlan {
  int64_t tiles_m, tiles_n;
  int64_t tiles;          // tiles_m x tiles_n x items x splits
  int64_t splits, depth;  // parts that the sums are cut into, and their length
  void* partial;          // [splits, items, m, n], where splits > 1
  bool packs_c;           // packs of C, or of the partial sums, can be stored as one
  bool along_depth_a, along_depth_b;  // where neighbouring elements lie
};

struct Place {
  int64_t split, item;
  int64_t m0, n0;
  int64_t k0, k1;  // the part of the depth
};

// Tiles are counted down columns of kGroupRows tiles: what runs at one time then shares rows of A
// and columns of B in L2.
template <class S>
__device__ __forceinline__ Place place_of(const Gemm& gemm, const SimtPlan& plan, int64_t tile) {
  constexpr int64_t kGroupRows = 8;
  Place place;
  const int64_t per_item = plan.tiles_m * plan.tiles_n;
  const int64_t rest = tile / per_item;
  tile -= rest * per_item;
  place.split = rest / gemm.items;
  place.item = rest - place.split * gemm.items;
  const int64_t per_group = kGroupRows * plan.tiles_n;
  const int64_t first = tile / per_group * kGroupRows;
  const int64_t rows = std::min(plan.tiles_m - first, kGroupRows);
  tile %= per_group;
  const int64_t column = tile / rows;
  place.m0 = (first + tile - column * rows) * S::kM;
  place.n0 = column * S::kN;
  place.k0 = place.split * plan.depth;
  place.k1 = std::min(gemm.k, place.k0 + plan.depth);
  return place;
}

// ---------------------------------------------------------------------------------------------
// Loaders. begin() looks at a new tile of C, load() starts the loads of one tile of the depth and
// store() puts what they brought into shared memory.

// One operand of a PlainLoader: [kLines, depth] with one of the two steps 1 and the other `ld`.
template <class S, int kLines, bool kAlongDepth>
class PlainSide {
  using Four = Pack<float, 4>;
  static constexpr int kCount = kLines * S::kDepth / (4 * S::kGroupThreads);  // packs of a thread
  static constexpr int kPerDepth = S::kDepth / 4, kPerLines = kLines / 4;
  static constexpr int kAcross = kAlongDepth ? kPerDepth : kPerLines;  // packs side by side
  static constexpr int kDown = S::kGroupThreads / kAcross;
  static_assert(kCount * 4 * S::kGroupThreads == kLines * S::kDepth);

 public:
  // `lines`: of the operand from this tile on; positions past the last are read from before it,
  // for sums that are not stored.
  __device__ __forceinline__ void begin(const float* first, int64_t ld, int64_t lines,
                                        int64_t depth, int thread) {
    const int across = thread % kAcross * 4;
    down_ = thread / kAcross;
    const int position = kAlongDepth ? across : down_;
    left_ = depth - position;
    advance_ = kAlongDepth ? S::kDepth : S::kDepth * ld;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int64_t line = kAlongDepth ? down_ + i * kDown : across;
      const int64_t last = kAlongDepth ? lines - 1 : lines - 4;
      const int64_t kept = std::min(line, last);
      next_[i] = first + (kAlongDepth ? kept * ld + across : kept + (down_ + i * kDown) * ld);
    }
  }

  __device__ __forceinline__ void load() {
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      staged_[i] = Four{};
      if (left_ > (kAlongDepth ? 0 : i * kDown)) {
        staged_[i] = *reinterpret_cast<const Four*>(next_[i]);
      }
      next_[i] += advance_;
    }
    left_ -= S::kDepth;
  }

  template <int kLd>
  __device__ __forceinline__ void store(float (&tile)[S::kDepth][kLd], int thread) const {
    const int across = thread % kAcross * 4;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int down = thread / kAcross + i * kDown;
      if constexpr (kAlongDepth) {
#pragma unroll
        for (int p = 0; p < 4; ++p) tile[across + p][down] = staged_[i].items[p];
      } else {
        *reinterpret_cast<Four*>(&tile[down][across]) = staged_[i];
      }
    }
  }

 private:
  const float* next_[kCount];
  Four staged_[kCount];
  int64_t left_;     // of the depth, from the thread's position on
  int64_t advance_;  // elements to the next tile
  int down_;
};

template <class S, bool kAlongDepthA, bool kAlongDepthB>
class PlainLoader {
 public:
  struct Shared {};
  static constexpr bool kPlain = true;

  __device__ __forceinline__ PlainLoader(const Gemm& gemm, const SimtPlan&, Shared&, int thread)
      : gemm_(gemm), thread_(thread) {}

  __device__ __forceinline__ void begin(const Place& place) {
    const int64_t ld_a = kAlongDepthA ? gemm_.m_a.step() : gemm_.k_a.step();
    const int64_t ld_b = kAlongDepthB ? gemm_.n_b.step() : gemm_.k_b.step();
    const float* a = static_cast<const float*>(gemm_.a) + gemm_.batch_a.at(place.item);
    const float* b = static_cast<const float*>(gemm_.b) + gemm_.batch_b.at(place.item);
    a += kAlongDepthA ? place.m0 * ld_a + place.k0 : place.m0 + place.k0 * ld_a;
    b += kAlongDepthB ? place.n0 * ld_b + place.k0 : place.n0 + place.k0 * ld_b;
    a_.begin(a, ld_a, gemm_.m - place.m0, place.k1 - place.k0, thread_);
    b_.begin(b, ld_b, gemm_.n - place.n0, place.k1 - place.k0, thread_);
  }
  __device__ __forceinline__ void prepare(int64_t) {}
  __device__ __forceinline__ void load(int64_t) {
    a_.load();
    b_.load();
  }
  __device__ __forceinline__ void store(Tiles<S>& tiles, int buffer) const {
    a_.store(tiles.a[buffer], thread_);
    b_.store(tiles.b[buffer], thread_);
  }

 private:
  const Gemm& gemm_;
  const int thread_;
  PlainSide<S, S::kM, kAlongDepthA> a_;
  PlainSide<S, S::kN, kAlongDepthB> b_;
};

// Which elements of a tile [kLines, kDepth] a thread loads: those at (line + i line_step,
// depth + i depth_step). Neighbouring threads take what lies side by side in memory.
template <class S, int kLines>
struct Spread {
  static constexpr int kCount = kLines * S::kDepth / S::kGroupThreads;
  static_assert(S::kGroupThreads % kLines == 0 || kLines % S::kGroupThreads == 0);
  int line, line_step, depth, depth_step;

  __device__ __forceinline__ Spread(bool along_depth, int thread) {
    if (along_depth) {
      line = thread / S::kDepth;
      line_step = S::kGroupThreads / S::kDepth;
      depth = thread % S::kDepth;
      depth_step = 0;
    } else {
      line = thread % kLines;
      line_step = 0;
      depth = thread / kLines;
      depth_step = S::kGroupThreads / kLines;
    }
  }
};

// Where lines and depth positions lie is worked out once for all threads and kept in shared memory:
// an index of several dimensions takes divisions.
template <class S>
class GeneralLoader {
  using Acc = typename S::Acc;
  static constexpr int kDepth = S::kDepth;
  using SpreadA = Spread<S, S::kM>;
  using SpreadB = Spread<S, S::kN>;
  static constexpr int kA = SpreadA::kCount, kB = SpreadB::kCount;

 public:
  static constexpr bool kPlain = false;
  // Bytes from the operand's first element; what is absent is not filled in.
  struct Shared {
    int64_t a[S::kM], s[S::kM];                // of rows
    int64_t b[S::kN], b2[S::kN], row[S::kN];   // of columns of B: rows of a folded matrix
    struct Depth {
      int64_t a[kDepth], s[kDepth], b[kDepth], b2[kDepth], column[kDepth];
    } depth[2];
  };

  __device__ __forceinline__ GeneralLoader(const Gemm& gemm, const SimtPlan& plan, Shared& shared,
                                           int thread)
      : gemm_(gemm),
        shared_(shared),
        thread_(thread),
        spread_a_(plan.along_depth_a, thread),
        spread_b_(plan.along_depth_b, thread) {}

  __device__ __forceinline__ void begin(const Place& place) {
    k0_ = place.k0;
    k1_ = place.k1;
    const int64_t size_a = dtype_size(gemm_.dtype_a), size_b = dtype_size(gemm_.dtype_b);
    const int64_t size_s = dtype_size(gemm_.dtype);
    // Positions past the last are read from the last one, for sums that are not stored.
    if (gemm_.a != nullptr) {
      const int64_t item_a = gemm_.batch_a.at(place.item);
      const int64_t item_s = gemm_.s == nullptr ? 0 : gemm_.batch_s.at(place.item);
      for (int line = thread_; line < S::kM; line += S::kGroupThreads) {
        const int64_t i = std::min(place.m0 + line, gemm_.m - 1);
        shared_.a[line] = (item_a + gemm_.m_a.at(i)) * size_a;
        if (gemm_.s != nullptr) shared_.s[line] = (item_s + gemm_.m_s.at(i)) * size_s;
      }
    }
    const int64_t item_b = gemm_.batch_b.at(place.item);
    for (int line = thread_; line < S::kN; line += S::kGroupThreads) {
      const int64_t j = std::min(place.n0 + line, gemm_.n - 1);
      shared_.b[line] = (item_b + gemm_.n_b.at(j)) * size_b;
      if (gemm_.fold != Fold::kNone) {
        shared_.b2[line] = (item_b + gemm_.n_b2.at(j)) * size_b;
        shared_.row[line] = j % gemm_.fold_n;
      }
    }
    prepare(0);
    prepare(1);
  }

  // Works out where the positions of one tile of the depth lie: one warp, each time another one.
  __device__ __forceinline__ void prepare(int64_t tile) {
    static_assert(4 * kDepth <= 32);  // a lane per operand and position
    constexpr int kWarps = S::kGroupThreads / 32;
    if (thread_ / 32 != static_cast<int>(tile % kWarps)) return;
    const int lane = thread_ % 32, operand = lane / kDepth, at = lane % kDepth;
    const int64_t position = k0_ + tile * kDepth + at;
    if (position >= k1_) return;
    typename Shared::Depth& depth = shared_.depth[tile & 1];
    if (operand == 0) {
      depth.b[at] = gemm_.k_b.at(position) * dtype_size(gemm_.dtype_b);
    } else if (operand == 1 && gemm_.a != nullptr) {
      depth.a[at] = gemm_.k_a.at(position) * dtype_size(gemm_.dtype_a);
    } else if (operand == 2 && gemm_.s != nullptr) {
      depth.s[at] = gemm_.k_s.at(position) * dtype_size(gemm_.dtype);
    } else if (operand == 3 && gemm_.fold != Fold::kNone) {
      depth.b2[at] = gemm_.k_b2.at(position) * dtype_size(gemm_.dtype_b);
      depth.column[at] = position % gemm_.fold_k;
    }
  }

  __device__ __forceinline__ void load(int64_t tile) {
    const Shared& lines = shared_;
    const typename Shared::Depth& depth = shared_.depth[tile & 1];
    const int left = static_cast<int>(std::min<int64_t>(k1_ - k0_ - tile * kDepth, kDepth));
    if (gemm_.a != nullptr) {
      fetch(gemm_.dtype_a, gemm_.a, spread_a_, left, a_,
            [&](int line, int at) { return lines.a[line] + depth.a[at]; });
    }
    if (gemm_.s != nullptr) {
      fetch(gemm_.dtype, gemm_.s, spread_a_, left, s_,
            [&](int line, int at) { return lines.s[line] + depth.s[at]; });
    }
    if (gemm_.fold == Fold::kSymmetric) {
      fetch(gemm_.dtype_b, gemm_.b, spread_b_, left, b_, [&](int line, int at) {
        return lines.row[line] >= depth.column[at] ? lines.b[line] + depth.b[at]
                                                   : lines.b2[line] + depth.b2[at];
      });
    } else {
      fetch(gemm_.dtype_b, gemm_.b, spread_b_, left, b_,
            [&](int line, int at) { return lines.b[line] + depth.b[at]; });
    }
    if (gemm_.fold == Fold::kAddTranspose) {
      fetch(gemm_.dtype_b, gemm_.b, spread_b_, left, b2_,
            [&](int line, int at) { return lines.b2[line] + depth.b2[at]; });
    }
  }

  __device__ __forceinline__ void store(Tiles<S>& tiles, int buffer) const {
    Acc a[kA], b[kB];
    if (gemm_.a != nullptr) {
      decode(gemm_.dtype_a, gemm_.conj_a, a_, a);
    } else {
#pragma unroll
      for (int i = 0; i < kA; ++i) a[i] = one<Acc>();
    }
    if (gemm_.s != nullptr) {
      Acc s[kA];
      decode(gemm_.dtype, gemm_.conj_s, s_, s);
#pragma unroll
      for (int i = 0; i < kA; ++i) a[i] = multiply(a[i], s[i]);
    }
    decode(gemm_.dtype_b, gemm_.conj_b, b_, b);
    if (gemm_.fold == Fold::kAddTranspose) {
      Acc b2[kB];
      decode(gemm_.dtype_b, gemm_.conj_b, b2_, b2);
#pragma unroll
      for (int i = 0; i < kB; ++i) b[i] = add(b[i], b2[i]);
    }
#pragma unroll
    for (int i = 0; i < kA; ++i) {
      tiles.a[buffer][spread_a_.depth + i * spread_a_.depth_step]
             [spread_a_.line + i * spread_a_.line_step] = a[i];
    }
#pragma unroll
    for (int i = 0; i < kB; ++i) {
      tiles.b[buffer][spread_b_.depth + i * spread_b_.depth_step]
             [spread_b_.line + i * spread_b_.line_step] = b[i];
    }
  }

 private:
  // Zeros past the end of the depth, in A and in B.
  template <class Side, class Offset>
  __device__ __forceinline__ static void fetch(Dtype dtype, const void* base, const Side& spread,
                                               int left, Raw<Acc> (&raw)[Side::kCount],
                                               Offset offset) {
    with_storage<Acc>(dtype, [&](auto* type) {
      using T = StorageOf<decltype(type)>;
#pragma unroll
      for (int i = 0; i < Side::kCount; ++i) {
        const int at = spread.depth + i * spread.depth_step;
        raw[i] = Raw<Acc>{};
        if (at < left) {
          const char* address =
              static_cast<const char*>(base) + offset(spread.line + i * spread.line_step, at);
          raw[i] = raw_of<Acc>(*reinterpret_cast<const T*>(address));
        }
      }
    });
  }

  template <int kCount>
  __device__ __forceinline__ static void decode(Dtype dtype, bool conj,
                                                const Raw<Acc> (&raw)[kCount],
                                                Acc (&values)[kCount]) {
    with_storage<Acc>(dtype, [&](auto* type) {
      using T = StorageOf<decltype(type)>;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        values[i] = conjugate_if(conj, widen_raw<Acc, T>(raw[i]));
      }
    });
  }

  const Gemm& gemm_;
  Shared& shared_;
  const int thread_;
  const SpreadA spread_a_;
  const SpreadB spread_b_;
  int64_t k0_ = 0, k1_ = 0;
  Raw<Acc> a_[kA], s_[kA], b_[kB], b2_[kB];
};

// ---------------------------------------------------------------------------------------------
// The product of one tile.

template <class S, class Loader>
struct SimtShared {
  Tiles<S> tiles;
  int64_t row_c[S::kM], col_c[S::kN];  // elements from the item's first in C
  typename Loader::Shared loader;
};

// A thread's rows and columns of a tile. Lanes 2i and 2i + 1 differ in their row and lanes 4i and
// 4i + 2 in their column: of the 16-byte loads of a half warp, pairs then name the same address,
// which lets the hardware serve the warp in half the passes.
template <class S>
struct Seat {
  int row, col;  // of the first pack

  __device__ __forceinline__ explicit Seat(int thread) {
    const int warp = thread / 32, lane = thread % 32;
    row = warp / S::kWarpsN * S::kWarpRows + (lane / 16 * 2 + lane % 2) * S::kPack;
    col = warp % S::kWarpsN * S::kWarpCols + lane / 2 % 8 * S::kPack;
  }
  // Of pack v, entry e.
  __device__ __forceinline__ int row_of(int v, int e) const { return row + v * 4 * S::kPack + e; }
  __device__ __forceinline__ int col_of(int v, int e) const { return col + v * 8 * S::kPack + e; }
};

template <class S>
struct Fragments {
  using P = Pack<typename S::Acc, S::kPack>;
  P a[S::kRowPacks], b[S::kColPacks];

  __device__ __forceinline__ void load(const Tiles<S>& tiles, int buffer, int k,
                                       const Seat<S>& seat) {
#pragma unroll
    for (int v = 0; v < S::kRowPacks; ++v) {
      a[v] = *reinterpret_cast<const P*>(&tiles.a[buffer][k][seat.row_of(v, 0)]);
    }
#pragma unroll
    for (int v = 0; v < S::kColPacks; ++v) {
      b[v] = *reinterpret_cast<const P*>(&tiles.b[buffer][k][seat.col_of(v, 0)]);
    }
  }
};

template <class S>
struct Sums {
  using Acc = typename S::Acc;
  static constexpr int kPack = S::kPack;
  Acc at[S::kRowPacks * kPack][S::kColPacks * kPack];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < S::kRowPacks * kPack; ++i) {
#pragma unroll
      for (int j = 0; j < S::kColPacks * kPack; ++j) at[i][j] = Acc{};
    }
  }

  __device__ __forceinline__ void add_product(const Fragments<S>& fragments) {
#pragma unroll
    for (int i = 0; i < S::kRowPacks * kPack; ++i) {
#pragma unroll
      for (int j = 0; j < S::kColPacks * kPack; ++j) {
        at[i][j] = multiply_add(fragments.a[i / kPack].items[i % kPack],
                                fragments.b[j / kPack].items[j % kPack], at[i][j]);
      }
    }
  }
};

// Bias, scale and rounding; or the bare sums, where they are one part of several.
template <class S, bool kPlain>
__device__ __forceinline__ void store_sums(const Gemm& gemm, const SimtPlan& plan,
                                           const Place& place, const Seat<S>& seat,
                                           const int64_t* row_c, const int64_t* col_c,
                                           const Sums<S>& sums) {
  using Acc = typename S::Acc;
  constexpr int kPack = S::kPack;
  const bool whole = plan.splits == 1;
  const bool bias_on_rows = whole && gemm.bias != nullptr && gemm.bias_on_rows;
  const bool bias_on_cols = whole && gemm.bias != nullptr && !gemm.bias_on_rows;
  const double scale = whole ? gemm.scale : 1;
  Acc col_bias[S::kColPacks * kPack];
#pragma unroll
  for (int j = 0; j < S::kColPacks * kPack; ++j) {
    const int64_t col = place.n0 + seat.col_of(j / kPack, j % kPack);
    col_bias[j] = Acc{};
    if (bias_on_cols && col < gemm.n) col_bias[j] = load_bias<Acc>(gemm, col);
  }
  const auto store_as = [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    T* c = whole ? static_cast<T*>(gemm.c) + gemm.batch_c.at(place.item)
                 : static_cast<T*>(plan.partial) +
                       (place.split * gemm.items + place.item) * gemm.m * gemm.n;
#pragma unroll
    for (int i = 0; i < S::kRowPacks * kPack; ++i) {
      const int row = seat.row_of(i / kPack, i % kPack);
      if (place.m0 + row >= gemm.m) continue;
      const Acc row_bias = bias_on_rows ? load_bias<Acc>(gemm, place.m0 + row) : Acc{};
      T* row_start = c + row_c[row];
#pragma unroll
      for (int v = 0; v < S::kColPacks; ++v) {
        Pack<T, kPack> out;
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const Acc sum = scaled(sums.at[i][v * kPack + e], scale);
          narrow(add(sum, add(row_bias, col_bias[v * kPack + e])), out.items[e]);
        }
        const int64_t left = gemm.n - place.n0 - seat.col_of(v, 0);
        if (plan.packs_c && left >= kPack) {
          *reinterpret_cast<Pack<T, kPack>*>(row_start + col_c[seat.col_of(v, 0)]) = out;
        } else {
#pragma unroll
          for (int e = 0; e < kPack; ++e) {
            if (e < left) row_start[col_c[seat.col_of(v, e)]] = out.items[e];
          }
        }
      }
    }
  };
  if constexpr (kPlain) {
    store_as(static_cast<Acc*>(nullptr));
  } else {
    with_storage<Acc>(whole ? gemm.dtype_c : accumulator_dtype<Acc>(), store_as);
  }
}

namespace {

template <class S, class Loader>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks)
    simt_kernel(const __grid_constant__ Gemm gemm, const __grid_constant__ SimtPlan plan) {
  struct Block {
    SimtShared<S, Loader> groups[S::kGroups];
  };
  const int group = static_cast<int>(threadIdx.x) / S::kGroupThreads;
  const int thread = static_cast<int>(threadIdx.x) % S::kGroupThreads;
  SimtShared<S, Loader>& shared = shared_memory<Block>().groups[group];
  const Seat<S> seat(thread);
  Loader loader(gemm, plan, shared.loader, thread);
  Sums<S> sums;

  const int64_t step = static_cast<int64_t>(gridDim.x) * S::kGroups;
  int64_t tile = static_cast<int64_t>(blockIdx.x) * S::kGroups + group;
  for (; tile < plan.tiles; tile += step) {
    const Place place = place_of<S>(gemm, plan, tile);
    const int64_t count = (place.k1 - place.k0 + S::kDepth - 1) / S::kDepth;
    loader.begin(place);
    for (int line = thread; line < S::kM; line += S::kGroupThreads) {
      const int64_t i = std::min(place.m0 + line, gemm.m - 1);
      shared.row_c[line] = plan.splits == 1 ? gemm.m_c.at(i) : i * gemm.n;
    }
    for (int line = thread; line < S::kN; line += S::kGroupThreads) {
      const int64_t j = std::min(place.n0 + line, gemm.n - 1);
      shared.col_c[line] = plan.splits == 1 ? gemm.n_c.at(j) : j;
    }
    sums.clear();
    group_barrier<S>();
    if (count > 0) {
      loader.load(0);
      loader.store(shared.tiles, 0);
      group_barrier<S>();
      // Fragments are read one position ahead, also across the border between two tiles: the next
      // buffer is full one position before it is needed, and by then all have left the other one.
      Fragments<S> fragments[2];
      fragments[0].load(shared.tiles, 0, 0, seat);
      for (int64_t t = 0; t < count; ++t) {
        const bool more = t + 1 < count;
        const int buffer = static_cast<int>(t & 1);
#pragma unroll
        for (int k = 0; k < S::kDepth; ++k) {
          if (k + 1 < S::kDepth) {
            fragments[(k + 1) % 2].load(shared.tiles, buffer, k + 1, seat);
          } else if (more) {
            loader.store(shared.tiles, buffer ^ 1);
            group_barrier<S>();
            fragments[0].load(shared.tiles, buffer ^ 1, 0, seat);
          }
          if (k == 0 && more) {
            loader.load(t + 1);
            loader.prepare(t + 2);
          }
          sums.add_product(fragments[k % 2]);
        }
      }
    }
    store_sums<S, Loader::kPlain>(gemm, plan, place, seat, shared.row_c, shared.col_c, sums);
    group_barrier<S>();
  }
}

}  // namespace
}  // namespace matcalc::cuda
