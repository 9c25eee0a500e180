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

#include "simt_loaders.cuh"

namespace matcalc::cuda {
namespace {

template <class S, class Loader>
struct SimtShared {
  Tiles<S> tiles;
  int64_t row_c[S::kM], col_c[S::kN];  // elements from the item's first in C
  Place place;                         // kept here, out of the registers of the inner loop
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
  const auto store_as = [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    T* c = static_cast<T*>(whole ? gemm.c : plan.partial) + place.c;
#pragma unroll
    for (int v = 0; v < S::kColPacks; ++v) {
      const int col = seat.col_of(v, 0), left = place.cols - col;
      Acc col_bias[kPack];
#pragma unroll
      for (int e = 0; e < kPack; ++e) {
        col_bias[e] = Acc{};
        if (bias_on_cols && e < left) col_bias[e] = load_bias<Acc>(gemm, place.n0 + col + e);
      }
#pragma unroll
      for (int i = 0; i < S::kRowPacks * kPack; ++i) {
        const int row = seat.row_of(i / kPack, i % kPack);
        if (row >= place.rows) continue;
        Acc row_bias{};
        if (bias_on_rows) row_bias = load_bias<Acc>(gemm, place.m0 + row);
        Pack<T, kPack> out;
#pragma unroll
        for (int e = 0; e < kPack; ++e) {
          const Acc sum = scaled(sums.at[i][v * kPack + e], scale);
          narrow(add(sum, add(row_bias, col_bias[e])), out.items[e]);
        }
        T* row_start = c + row_c[row];
        if (plan.packs_c && left >= kPack) {
          *reinterpret_cast<Pack<T, kPack>*>(row_start + col_c[col]) = out;
        } else {
#pragma unroll
          for (int e = 0; e < kPack; ++e) {
            if (e < left) row_start[col_c[col + e]] = out.items[e];
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

// The sum over all tiles of the depth, of which the first is in shared memory. The loop has no
// branch around a load or a store, which would keep the compiler from spreading them between the
// multiply-adds: past the last tile loaders bring zeros, which are stored and not read.
template <class S, class Loader>
__device__ __forceinline__ void multiply_tiles(SimtShared<S, Loader>& shared, Loader& loader,
                                               const Seat<S>& seat, int count, Sums<S>& sums) {
  // Where registers allow it, fragments are read one position ahead, also across the border of two
  // tiles: the next buffer is full one position before it is needed, and by then all threads have
  // read the last of the other one.
  constexpr int kAhead = Loader::kPlain ? 1 : 0;
  Fragments<S> fragments[1 + kAhead];
  if (kAhead == 1) fragments[0].load(shared.tiles, 0, 0, seat);
  for (int t = 0; t < count; ++t) {
    const int buffer = t & 1;
    loader.prepare(t + 2, shared.place);
    loader.load(t + 1);
#pragma unroll
    for (int k = 0; k < S::kDepth; ++k) {
      if (k + kAhead < S::kDepth) {
        fragments[(k + kAhead) % (1 + kAhead)].load(shared.tiles, buffer, k + kAhead, seat);
      } else {
        loader.store(shared.tiles, buffer ^ 1);
        group_barrier<S>();
        fragments[0].load(shared.tiles, buffer ^ 1, 0, seat);
      }
      sums.add_product(fragments[k % (1 + kAhead)]);
    }
    if (kAhead == 0) {
      loader.store(shared.tiles, buffer ^ 1);
      group_barrier<S>();
    }
  }
}

template <class S, class Loader>
__global__ void __launch_bounds__(S::kThreads, S::kMinBlocks)
    simt_kernel(const __grid_constant__ Gemm gemm, const __grid_constant__ SimtPlan plan) {
  struct Block {
    SimtShared<S, Loader> groups[S::kGroups];
  };
  const int group = S::kGroups == 1 ? 0 : static_cast<int>(threadIdx.x) / S::kGroupThreads;
  const int thread = static_cast<int>(threadIdx.x) % S::kGroupThreads;
  SimtShared<S, Loader>& shared = shared_memory<Block>().groups[group];
  const Seat<S> seat(thread);
  Loader loader(gemm, plan, shared.loader, thread);
  Sums<S> sums;

  const int64_t step = static_cast<int64_t>(gridDim.x) * S::kGroups;
  int64_t tile = static_cast<int64_t>(blockIdx.x) * S::kGroups + group;
  for (; tile < plan.tiles; tile += step) {
    int count;  // tiles of the depth
    {
      const Place place = place_of<S>(gemm, plan, tile);
      if (thread == 0) shared.place = place;
      count = (static_cast<int>(place.k1 - place.k0) + S::kDepth - 1) / S::kDepth;
      loader.begin(place);
      if constexpr (!Loader::kPlain) group_barrier<S>();
      loader.load(0);
      for (int line = thread; line < S::kM; line += S::kGroupThreads) {
        const int64_t i = place.m0 + std::min(line, place.rows - 1);
        shared.row_c[line] = plan.splits == 1 ? offset_at(gemm.m_c, i) : i * gemm.n;
      }
      for (int line = thread; line < S::kN; line += S::kGroupThreads) {
        const int64_t j = place.n0 + std::min(line, place.cols - 1);
        shared.col_c[line] = plan.splits == 1 ? offset_at(gemm.n_c, j) : j;
      }
      loader.store(shared.tiles, 0);
    }
    group_barrier<S>();
    sums.clear();
    multiply_tiles<S>(shared, loader, seat, count, sums);
    store_sums<S, Loader::kPlain>(gemm, plan, shared.place, seat, shared.row_c, shared.col_c, sums);
    group_barrier<S>();
  }
}

}  // namespace
}  // namespace matcalc::cuda
