// The tiles of the product on the ordinary arithmetic units (simt.cuh), and the loaders that bring
// them from global memory into shared memory.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "storage.cuh"

namespace matcalc::cuda {
namespace {  // other paths have shapes, tiles and loaders of their own

// How a product is cut up. The 32 lanes of a warp stand in 4 rows of 8, and each has kRows x kCols
// sums: squares of kPack x kPack, 16 bytes of A against 16 bytes of B, between which those of the
// other lanes lie. kGroupCount tiles make a block, of which kBlocks fit on a multiprocessor.
template <class T, int kWarpsDown, int kWarpsAcross, int kRows, int kCols, int kGroupCount,
          int kBlocks>
struct Shape {
  using Acc = T;
  static constexpr int kPack = 16 / static_cast<int>(sizeof(Acc));
  static constexpr int kRowPacks = kRows / kPack, kColPacks = kCols / kPack;  // of a thread
  static constexpr int kWarpRows = 4 * kRows, kWarpCols = 8 * kCols;
  static constexpr int kWarpsM = kWarpsDown, kWarpsN = kWarpsAcross;
  static constexpr int kM = kWarpsM * kWarpRows, kN = kWarpsN * kWarpCols;  // the tile of C
  // Positions along the depth of the tiles in shared memory: few, so that what is on its way in
  // registers leaves room for the sums.
  static constexpr int kDepth = sizeof(Acc) == 16 ? 4 : 8;
  // With 16 bytes of padding each depth begins four banks after the one before: a store that goes
  // along the depth meets no bank twice, and packs stay aligned.
  static constexpr int kLdA = kM + kPack, kLdB = kN + kPack;
  static constexpr int kGroupThreads = 32 * kWarpsM * kWarpsN;  // they share one tile
  static constexpr int kGroups = kGroupCount;                   // tiles of a block
  static constexpr int kThreads = kGroups * kGroupThreads;
  static constexpr int kMinBlocks = kBlocks;
  static_assert(kRows % kPack == 0 && kCols % kPack == 0);
  static_assert(kGroups == 1 || kGroupThreads == 32);  // a group waits for itself alone
};

// Depth outermost: what the lanes read for one multiply-add lies side by side.
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

constexpr int64_t kMaxDepth = int64_t{1} << 30;  // positions within one part fit 32 bits

struct SimtPlan {
  int64_t tiles_m, tiles_n;
  int64_t tiles;          // tiles_m x tiles_n x items x splits
  int64_t splits, depth;  // parts that the sums are cut into, and their length: at most kMaxDepth
  void* partial;          // [splits, items, m, n], where splits > 1
  bool packs_c;           // packs of C, or of the partial sums, can be stored as one
  bool along_depth_a, along_depth_b;  // where neighbouring elements lie
  int32_t size_a, size_s, size_b;     // bytes of an element
};

// A tile of C, and the part of the depth that is summed.
struct Place {
  int64_t item, m0, n0;
  int32_t rows, cols;  // of the tile that there are
  int64_t k0, k1;
  int64_t c;  // the item's first element, from the start of C or of the partial sums
};

// Tiles are counted down columns of kGroupRows tiles: what runs at one time then shares rows of A
// and columns of B in L2.
template <class S>
__device__ __forceinline__ Place place_of(const Gemm& gemm, const SimtPlan& plan, int64_t tile) {
  constexpr int64_t kGroupRows = 8;
  const int64_t per_item = plan.tiles_m * plan.tiles_n;
  const int64_t rest = tile / per_item;
  tile -= rest * per_item;
  const int64_t split = rest / gemm.items;
  const int64_t per_group = kGroupRows * plan.tiles_n;
  const int64_t first = tile / per_group * kGroupRows;
  const int64_t rows = std::min(plan.tiles_m - first, kGroupRows);
  tile %= per_group;
  const int64_t column = tile / rows;
  Place place;
  place.item = rest - split * gemm.items;
  place.m0 = (first + tile - column * rows) * S::kM;
  place.n0 = column * S::kN;
  place.rows = static_cast<int32_t>(std::min<int64_t>(gemm.m - place.m0, S::kM));
  place.cols = static_cast<int32_t>(std::min<int64_t>(gemm.n - place.n0, S::kN));
  place.k0 = split * plan.depth;
  place.k1 = std::min(gemm.k, place.k0 + plan.depth);
  place.c = plan.splits == 1 ? offset_at(gemm.batch_c, place.item) : rest * gemm.m * gemm.n;
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
  // `first` is the operand's first element in the tile, of which there are so many lines and so
  // much depth. For sums that are not stored, lines that there are stand in for those past the end.
  __device__ __forceinline__ void begin(const float* first, int64_t ld, int lines, int depth,
                                        int thread) {
    const int across = thread % kAcross * 4, down = thread / kAcross;
    left_ = depth - (kAlongDepth ? across : down);
    advance_ = kAlongDepth ? S::kDepth : S::kDepth * ld;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const int line = kAlongDepth ? down + i * kDown : across;
      const int64_t kept = std::min(line, lines - (kAlongDepth ? 1 : 4));
      next_[i] = first + (kAlongDepth ? kept * ld + across : kept + (down + i * kDown) * ld);
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
  int left_;         // of the depth, from the thread's position on
  int64_t advance_;  // elements to the next tile
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
    const float* a = static_cast<const float*>(gemm_.a) + offset_at(gemm_.batch_a, place.item);
    const float* b = static_cast<const float*>(gemm_.b) + offset_at(gemm_.batch_b, place.item);
    a += kAlongDepthA ? place.m0 * ld_a + place.k0 : place.m0 + place.k0 * ld_a;
    b += kAlongDepthB ? place.n0 * ld_b + place.k0 : place.n0 + place.k0 * ld_b;
    const int depth = static_cast<int>(place.k1 - place.k0);
    a_.begin(a, ld_a, place.rows, depth, thread_);
    b_.begin(b, ld_b, place.cols, depth, thread_);
  }
  __device__ __forceinline__ void prepare(int, const Place&) {}
  __device__ __forceinline__ void load(int) {
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

// Which elements of a tile [kLines, kDepth] a thread loads: all at one depth, kStep lines apart.
// Neighbouring threads take what lies side by side in memory.
template <class S, int kLines>
struct Spread {
  static constexpr int kStep = S::kGroupThreads / S::kDepth;
  static constexpr int kCount = kLines / kStep;
  static_assert(kLines % kStep == 0);
  int line, depth;  // of the first

  __device__ __forceinline__ Spread(bool along_depth, int thread)
      : line(along_depth ? thread / S::kDepth : thread % kStep),
        depth(along_depth ? thread % S::kDepth : thread / kStep) {}
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
    int64_t a[S::kM], s[S::kM];               // of rows
    int64_t b[S::kN], b2[S::kN], row[S::kN];  // of columns of B: rows of a folded matrix
    struct Depth {
      int64_t a[kDepth], s[kDepth], b[kDepth], b2[kDepth], column[kDepth];
      int32_t left;  // positions up to the end, at most kDepth; none or fewer past it
    } depth[2];
  };

  __device__ __forceinline__ GeneralLoader(const Gemm& gemm, const SimtPlan& plan, Shared& shared,
                                           int thread)
      : gemm_(gemm),
        plan_(plan),
        shared_(shared),
        thread_(thread),
        spread_a_(plan.along_depth_a, thread),
        spread_b_(plan.along_depth_b, thread) {}

  __device__ __forceinline__ void begin(const Place& place) {
    // For sums that are not stored, the last line stands in for those past the end.
    if (gemm_.a != nullptr) {
      const int64_t item_a = offset_at(gemm_.batch_a, place.item);
      const int64_t item_s = gemm_.s == nullptr ? 0 : offset_at(gemm_.batch_s, place.item);
      for (int line = thread_; line < S::kM; line += S::kGroupThreads) {
        const int64_t i = place.m0 + std::min(line, place.rows - 1);
        shared_.a[line] = (item_a + offset_at(gemm_.m_a, i)) * plan_.size_a;
        if (gemm_.s != nullptr) shared_.s[line] = (item_s + offset_at(gemm_.m_s, i)) * plan_.size_s;
      }
    }
    const int64_t item_b = offset_at(gemm_.batch_b, place.item);
    for (int line = thread_; line < S::kN; line += S::kGroupThreads) {
      const int64_t j = place.n0 + std::min(line, place.cols - 1);
      shared_.b[line] = (item_b + offset_at(gemm_.n_b, j)) * plan_.size_b;
      if (gemm_.fold != Fold::kNone) {
        shared_.b2[line] = (item_b + offset_at(gemm_.n_b2, j)) * plan_.size_b;
        shared_.row[line] = j % gemm_.fold_n;
      }
    }
    prepare(0, place);
    prepare(1, place);
  }

  // Works out where the positions of one tile of the depth lie: one warp, each time another one.
  __device__ __forceinline__ void prepare(int tile, const Place& place) {
    static_assert(4 * kDepth <= 32);  // a lane per operand and position
    constexpr int kWarps = S::kGroupThreads / 32;
    if (thread_ / 32 != tile % kWarps) return;
    const int lane = thread_ % 32, operand = lane / kDepth, at = lane % kDepth;
    const int64_t position = place.k0 + int64_t{tile} * kDepth + at;
    typename Shared::Depth& depth = shared_.depth[tile & 1];
    if (lane == 0) depth.left = static_cast<int>(std::min<int64_t>(place.k1 - position, kDepth));
    if (position >= place.k1) return;
    if (operand == 0) {
      depth.b[at] = offset_at(gemm_.k_b, position) * plan_.size_b;
    } else if (operand == 1 && gemm_.a != nullptr) {
      depth.a[at] = offset_at(gemm_.k_a, position) * plan_.size_a;
    } else if (operand == 2 && gemm_.s != nullptr) {
      depth.s[at] = offset_at(gemm_.k_s, position) * plan_.size_s;
    } else if (operand == 3 && gemm_.fold != Fold::kNone) {
      depth.b2[at] = offset_at(gemm_.k_b2, position) * plan_.size_b;
      depth.column[at] = position % gemm_.fold_k;
    }
  }

  __device__ __forceinline__ void load(int tile) {
    const typename Shared::Depth& depth = shared_.depth[tile & 1];
    const int line_a = spread_a_.line, at_a = spread_a_.depth;
    const int line_b = spread_b_.line, at_b = spread_b_.depth;
    const bool some_a = at_a < depth.left, some_b = at_b < depth.left;
    if (gemm_.a != nullptr) {
      const int64_t at = depth.a[at_a];
      fetch(plan_.size_a, gemm_.a, some_a, a_,
            [&](int i) { return shared_.a[line_a + i * SpreadA::kStep] + at; });
    }
    if (gemm_.s != nullptr) {
      const int64_t at = depth.s[at_a];
      fetch(plan_.size_s, gemm_.s, some_a, s_,
            [&](int i) { return shared_.s[line_a + i * SpreadA::kStep] + at; });
    }
    const int64_t at = depth.b[at_b];
    if (gemm_.fold == Fold::kSymmetric) {
      const int64_t at2 = depth.b2[at_b], column = depth.column[at_b];
      fetch(plan_.size_b, gemm_.b, some_b, b_, [&](int i) {
        const int line = line_b + i * SpreadB::kStep;
        return shared_.row[line] >= column ? shared_.b[line] + at : shared_.b2[line] + at2;
      });
    } else {
      fetch(plan_.size_b, gemm_.b, some_b, b_,
            [&](int i) { return shared_.b[line_b + i * SpreadB::kStep] + at; });
    }
    if (gemm_.fold == Fold::kAddTranspose) {
      const int64_t at2 = depth.b2[at_b];
      fetch(plan_.size_b, gemm_.b, some_b, b2_,
            [&](int i) { return shared_.b2[line_b + i * SpreadB::kStep] + at2; });
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
      tiles.a[buffer][spread_a_.depth][spread_a_.line + i * SpreadA::kStep] = a[i];
    }
#pragma unroll
    for (int i = 0; i < kB; ++i) {
      tiles.b[buffer][spread_b_.depth][spread_b_.line + i * SpreadB::kStep] = b[i];
    }
  }

 private:
  // Zeros past the end of the depth, in A and in B.
  template <int kCount, class Offset>
  __device__ __forceinline__ static void fetch(int size, const void* base, bool some,
                                               Raw<Acc> (&raw)[kCount], Offset offset) {
    with_size<Acc>(size, [&](auto* type) {
      using T = StorageOf<decltype(type)>;
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        raw[i] = Raw<Acc>{};
        if (some) {
          raw[i] = *reinterpret_cast<const T*>(static_cast<const char*>(base) + offset(i));
        }
      }
    });
  }

  template <int kCount>
  __device__ __forceinline__ static void decode(Dtype dtype, bool conj,
                                                const Raw<Acc> (&raw)[kCount],
                                                Acc (&values)[kCount]) {
    widen_raw<Acc>(dtype, raw, values);
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = conjugate_if(conj, values[i]);
  }

  const Gemm& gemm_;
  const SimtPlan& plan_;
  Shared& shared_;
  const int thread_;
  const SpreadA spread_a_;
  const SpreadB spread_b_;
  Raw<Acc> a_[kA], s_[kA], b_[kB], b2_[kB];
};

}  // namespace
}  // namespace matcalc::cuda
