// The gemm micro-kernel for AMX: tiles of 16 rows of 16 pairs of bfloat16 numbers, summed in
// float32. The instruction takes subnormal numbers, below 2^-126 in size, for zero.
//
// A pair of tile rows and of tile columns is in hand: four tiles of C over the whole depth, and at
// each step two of A and two of B, so that four products meet four loads. A tile of B has a row for
// each pair along the depth, as B's panel has. A tile of A has a row for each row of A; A's panel
// is packed for it, tile after tile.
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
    _tile_loadd(4, a + p * kPanel, kSide * kBytes);
    _tile_loadd(6, b + p * ldb, ldb * kBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoCols) {
      _tile_loadd(7, b + p * ldb + kSide, ldb * kBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTwoRows) {
      _tile_loadd(5, a + p * kPanel + kSide * kSide, kSide * kBytes);
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

// dst[(s * kPanel + w) * kSide + i] holds the terms 2 p and 2 p + 1 of row w, for p = s * kSide +
// i: the tiles one after the other, each of them a run of memory.
void pack_rows(Dtype, BfPair* dst, int64_t, int64_t width, int64_t depth,
               const PackSource& source) {
  const Bf16* src = static_cast<const Bf16*>(source.src) + source.k_offset[0];
  const int64_t step = source.k_step;
  const int64_t pairs = whole_steps(depth);
  const bool across = step != 1 && depth > 1 && contiguous_across(source, width);
  for (int64_t p0 = 0; p0 < pairs; p0 += kSide) {
    BfPair* const tiles = dst + p0 * kPanel;
    const int64_t terms = depth - 2 * p0 < 2 * kSide ? depth - 2 * p0 : 2 * kSide;
    if (across) {  // pairs of 16 rows at a time, transposed in registers
      for (int64_t w0 = 0; w0 < kPanel; w0 += kSide) {
        const int64_t count = width - w0 < kSide ? width - w0 : kSide;
        const Bf16* first = src + source.w_offset[0] + w0 + 2 * p0 * step;
        Vec<float> v[kSide];
        for (int64_t i = 0; i < kSide; ++i) {
          v[i] = Vec<float>::zero();
          if (2 * i >= terms || count <= 0) continue;
          const Bf16* low = first + 2 * i * step;
          v[i] = {_mm512_castsi512_ps(
              load_pairs(low, 2 * i + 1 < terms ? low + step : nullptr, count))};
        }
        transpose<kSide>(v);
        for (int64_t i = 0; i < kSide; ++i) {
          v[i].store(reinterpret_cast<float*>(tiles + (w0 + i) * kSide));
        }
      }
      continue;
    }
    for (int64_t w = 0; w < kPanel; ++w) {
      Bf16* const row = reinterpret_cast<Bf16*>(tiles + w * kSide);
      const Bf16* from = src + (w < width ? source.w_offset[w] : 0) + 2 * p0 * step;
      if (w < width && terms == 2 * kSide && step == 1) {
        std::memcpy(row, from, 2 * kSide * sizeof *row);
        continue;
      }
      std::memset(row, 0, 2 * kSide * sizeof *row);
      for (int64_t k = 0; w < width && k < terms; ++k) row[k] = from[k * step];
    }
  }
}

// Tiles are loaded from L2 as fast as they are multiplied, so that a panel need not fit L1. What
// counts is L3: with 2048 terms C hardly ever waits in memory for the rest of its sums, and what is
// packed of A takes half of a 2 MiB L2, beside the block of B. A sum does not depend on kKcPairs:
// the terms come in the same order, and float32 keeps what a tile holds.
constexpr int kKcPairs = 1024;
constexpr int kPackedBytes = 1 << 20;
static_assert(kKcPairs % kSide == 0);

constexpr GemmKernels<float, BfPair> kTiles = {.mr = kPanel,
                                               .nr = kPanel,
                                               .kc = kKcPairs,
                                               .depth_step = kSide,
                                               .packed_bytes = kPackedBytes,
                                               .tile = tile_of,
                                               .pack_rows = pack_rows,
                                               .pack_cols = pack_cols,
                                               .load = load<float>,
                                               .store = store_sums,
                                               .begin = begin_tiles,
                                               .end = end_tiles};

}  // namespace

const GemmKernels<float, BfPair>& gemm_kernels_amxbf16() { return kTiles; }

}  // namespace matcalc::cpu

#endif
