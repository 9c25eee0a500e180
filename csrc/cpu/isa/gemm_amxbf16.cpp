// The gemm micro-kernel for AMX: tiles of 16 rows of 16 pairs of bfloat16 numbers, summed in
// float32. The instruction takes subnormal numbers, below 2^-126 in size, for zero.
//
// A pair of tile rows and of tile columns is in hand: four tiles of C over the whole depth, and at
// each step two of A and two of B, so that four products meet four loads. A tile of B has a row for
// each pair along the depth, as B's panel has. A tile of A has a row for each row of A; A's panel
// is packed by rows, [mr][packed depth], for it.
#if defined(__x86_64__)

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "amx_tiles.h"
#include "gemm_kernels.h"
#include "vec_avx512.h"

namespace matcalc::cpu {
namespace {

constexpr int kTileRows = 8;  // of the kernels for vectors, whose loading and storing is used here
constexpr int kTileVectors = 3;

#include "gemm_kernels.inc"
#include "pair_kernels.inc"

constexpr int kPanel = 2 * kSide;  // rows, and columns, in hand

// Tiles 0 to 3 are C's, two by two; 4 and 5 are A's, 6 and 7 are B's. b has ldb pairs from one step
// of the depth to the next, c has ldc elements from row to row.
template <bool kTwoRows, bool kTwoCols>
void multiply_tiles(int64_t depth, const BfPair* a, const BfPair* b, int64_t ldb, float* c,
                    int64_t ldc, bool accumulate) {
  constexpr int64_t kBytes = sizeof(float);
  float* const below = c + kSide * ldc;
  if (accumulate) {
    _tile_loadd(0, c, ldc * kBytes);
    if constexpr (kTwoCols) _tile_loadd(1, c + kSide, ldc * kBytes);
    if constexpr (kTwoRows) _tile_loadd(2, below, ldc * kBytes);
    if constexpr (kTwoRows && kTwoCols) _tile_loadd(3, below + kSide, ldc * kBytes);
  } else {
    _tile_zero(0);
    if constexpr (kTwoCols) _tile_zero(1);
    if constexpr (kTwoRows) _tile_zero(2);
    if constexpr (kTwoRows && kTwoCols) _tile_zero(3);
  }
  for (int64_t p = 0; p < depth; p += kSide) {
    _tile_loadd(4, a + p, depth * kBytes);
    _tile_loadd(6, b + p * ldb, ldb * kBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoCols) {
      _tile_loadd(7, b + p * ldb + kSide, ldb * kBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTwoRows) {
      _tile_loadd(5, a + kSide * depth + p, depth * kBytes);
      _tile_dpbf16ps(2, 5, 6);
    }
    if constexpr (kTwoRows && kTwoCols) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, ldc * kBytes);
  if constexpr (kTwoCols) _tile_stored(1, c + kSide, ldc * kBytes);
  if constexpr (kTwoRows) _tile_stored(2, below, ldc * kBytes);
  if constexpr (kTwoRows && kTwoCols) _tile_stored(3, below + kSide, ldc * kBytes);
}

void tile_of(int64_t rows, int64_t cols, int64_t depth, const BfPair* a, int64_t, int64_t,
             const BfPair* b, int64_t ldb, float* c, int64_t ldc, bool accumulate) {
  // Whole tiles are loaded and stored, so what is less is computed beside C.
  const bool whole = rows % kSide == 0 && cols % kSide == 0;
  alignas(64) float beside[kPanel * kPanel];
  float* target = whole ? c : beside;
  const int64_t ld = whole ? ldc : kPanel;
  if (!whole && accumulate) {
    std::memset(beside, 0, sizeof beside);
    for (int64_t i = 0; i < rows; ++i) std::memcpy(beside + i * ld, c + i * ldc, cols * sizeof *c);
    written_before_tiles();
  }
  if (rows > kSide) {
    if (cols > kSide) {
      multiply_tiles<true, true>(depth, a, b, ldb, target, ld, accumulate);
    } else {
      multiply_tiles<true, false>(depth, a, b, ldb, target, ld, accumulate);
    }
  } else if (cols > kSide) {
    multiply_tiles<false, true>(depth, a, b, ldb, target, ld, accumulate);
  } else {
    multiply_tiles<false, false>(depth, a, b, ldb, target, ld, accumulate);
  }
  if (!whole) {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(c + i * ldc, beside + i * ld, cols * sizeof *c);
  }
}

int64_t whole_steps(int64_t depth) {
  const int64_t pairs = (depth + 1) / 2;
  return (pairs + kSide - 1) / kSide * kSide;
}

void pack_cols(Dtype, BfPair* dst, int64_t, int64_t width, int64_t depth,
               const PackSource& source) {
  pack_pairs_panel<kPanel>(dst, width, depth, source);
  const int64_t pairs = (depth + 1) / 2;
  std::memset(dst + pairs * kPanel, 0, (whole_steps(depth) - pairs) * kPanel * sizeof *dst);
}

// dst[w * packed depth + p] holds the terms 2 p and 2 p + 1 of row w.
void pack_rows(Dtype, BfPair* dst, int64_t, int64_t width, int64_t depth,
               const PackSource& source) {
  const Bf16* src = static_cast<const Bf16*>(source.src) + source.k_offset[0];
  const int64_t step = source.k_step;
  const int64_t ld = whole_steps(depth);
  if (step != 1 && depth > 1 && contiguous_across(source, width)) {
    // Pairs of 16 rows at a time, transposed in registers.
    const Bf16* first = src + source.w_offset[0];
    for (int64_t w0 = 0; w0 < kPanel; w0 += kSide) {
      const int64_t count = width - w0 < kSide ? width - w0 : kSide;
      for (int64_t p0 = 0; p0 < ld; p0 += kSide) {
        Vec<float> v[kSide];
        for (int i = 0; i < kSide; ++i) {
          const int64_t k = 2 * (p0 + i);
          v[i] = Vec<float>::zero();
          if (k >= depth || count <= 0) continue;
          const Bf16* low = first + w0 + k * step;
          const Bf16* high = k + 1 < depth ? low + step : nullptr;
          v[i] = {_mm512_castsi512_ps(load_pairs(low, high, count))};
        }
        transpose<kSide>(v);
        for (int i = 0; i < kSide; ++i) {
          v[i].store(reinterpret_cast<float*>(dst + (w0 + i) * ld + p0));
        }
      }
    }
    return;
  }
  for (int64_t w = 0; w < kPanel; ++w) {
    BfPair* const target = dst + w * ld;
    if (w >= width) {
      std::memset(target, 0, ld * sizeof *target);
      continue;
    }
    const Bf16* row = src + source.w_offset[w];
    if (step == 1 || depth == 1) {
      std::memcpy(target, row, depth * sizeof *row);
      std::memset(reinterpret_cast<Bf16*>(target) + depth, 0, (2 * ld - depth) * sizeof *row);
    } else {
      for (int64_t p = 0; p < ld; ++p) {
        const Bf16 low = 2 * p < depth ? row[2 * p * step] : Bf16{0};
        const Bf16 high = 2 * p + 1 < depth ? row[(2 * p + 1) * step] : Bf16{0};
        target[p].bits = pair_of(low, high);
      }
    }
  }
}

// A's panel (kPanel x kKcPairs pairs) is 32 KiB, two thirds of the L1 of the processors that have
// AMX; a block of B takes half of their 2 MiB of L2. Derived, not measured.
constexpr int kKcPairs = 256;
constexpr int kBlockCols = 1024;
static_assert(kKcPairs % kSide == 0 && kBlockCols % kPanel == 0);

constexpr GemmKernels<float, BfPair> kTiles = {.mr = kPanel,
                                               .nr = kPanel,
                                               .kc = kKcPairs,
                                               .nc = kBlockCols,
                                               .depth_step = kSide,
                                               .tile = tile_of,
                                               .pack_rows = pack_rows,
                                               .pack_cols = pack_cols,
                                               .load = load<float>,
                                               .store = store<float>,
                                               .begin = begin_tiles,
                                               .end = end_tiles};

}  // namespace

const GemmKernels<float, BfPair>& gemm_kernels_amxbf16() { return kTiles; }

}  // namespace matcalc::cpu

#endif
