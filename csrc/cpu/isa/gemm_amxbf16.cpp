// The gemm micro-kernel for AMX: tiles of 16 rows of 16 pairs of bfloat16 numbers, summed in
// float32. The instruction takes subnormal numbers, below 2^-126 in size, for zero.
//
// A pair of tile rows and of tile columns is in hand: four tiles of C over the whole depth, and at
// each step two of A and two of B, so that four products meet four loads. A tile of B has a row for
// each pair along the depth, as B's panel has. A tile of A has a row for each row of A, and is read
// where A lies, or A's panel is packed for it, tile after tile.
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
static_assert(kTileRun == 2 * kSide);

// A panel of A of no more bytes stays in L1 while B's panels pass. One that does not is as well
// loaded past L1, as B's panels always are: loaded the common way, both of them push each other out
// of L1 and fill it at the expense of the loads (depth 512: 1490 Gflop/s, not 1770; 1024: 1600, not
// 1790).
constexpr int64_t kPanelInL1 = 36 << 10;

// Tiles of A: `row` pairs from one of its rows to the next, `step` from a tile to the next along
// the depth. Packed: kSide and kPanel * kSide.
struct TilesOfA {
  const BfPair* first;
  int64_t row, step;
};

// Tiles 0 to 3 are C's, two by two; 4 and 5 are A's, 6 and 7 are B's. b has ldb pairs from one step
// of the depth to the next, c has ldc elements from row to row, and base, if there is one, ld_base.
template <bool kTwoRows, bool kTwoCols, bool kPastL1>
void multiply_tiles(int64_t depth, const TilesOfA& a, const BfPair* b, int64_t ldb, float* c,
                    int64_t ldc, const float* base, int64_t ld_base) {
  constexpr int64_t kBytes = sizeof(float);  // of a pair, too
  float* const below = c + kSide * ldc;
  if (base != nullptr) {
    const float* const base_below = base + kSide * ld_base;
    _tile_loadd(0, base, ld_base * kBytes);
    if constexpr (kTwoCols) _tile_loadd(1, base + kSide, ld_base * kBytes);
    if constexpr (kTwoRows) _tile_loadd(2, base_below, ld_base * kBytes);
    if constexpr (kTwoRows && kTwoCols) _tile_loadd(3, base_below + kSide, ld_base * kBytes);
  } else {
    _tile_zero(0);
    if constexpr (kTwoCols) _tile_zero(1);
    if constexpr (kTwoRows) _tile_zero(2);
    if constexpr (kTwoRows && kTwoCols) _tile_zero(3);
  }
  const int64_t row = a.row * kBytes;
  const BfPair* tile = a.first;
  for (int64_t p = 0; p < depth; p += kSide, tile += a.step) {
    if constexpr (kPastL1) {
      _tile_stream_loadd(4, tile, row);
    } else {
      _tile_loadd(4, tile, row);
    }
    _tile_stream_loadd(6, b + p * ldb, ldb * kBytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kTwoCols) {
      _tile_stream_loadd(7, b + p * ldb + kSide, ldb * kBytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (kTwoRows && kPastL1) {
      _tile_stream_loadd(5, tile + kSide * a.row, row);
    } else if constexpr (kTwoRows) {
      _tile_loadd(5, tile + kSide * a.row, row);
    }
    if constexpr (kTwoRows) _tile_dpbf16ps(2, 5, 6);
    if constexpr (kTwoRows && kTwoCols) _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, c, ldc * kBytes);
  if constexpr (kTwoCols) _tile_stored(1, c + kSide, ldc * kBytes);
  if constexpr (kTwoRows) _tile_stored(2, below, ldc * kBytes);
  if constexpr (kTwoRows && kTwoCols) _tile_stored(3, below + kSide, ldc * kBytes);
}

constexpr decltype(&multiply_tiles<true, true, true>) kMultiplyTiles[2][2][2] = {
    {{multiply_tiles<false, false, false>, multiply_tiles<false, false, true>},
     {multiply_tiles<false, true, false>, multiply_tiles<false, true, true>}},
    {{multiply_tiles<true, false, false>, multiply_tiles<true, false, true>},
     {multiply_tiles<true, true, false>, multiply_tiles<true, true, true>}}};

// A lies in rows, with a_col == 1, or it is packed, with a_col == kPanel.
void tile_of(int64_t rows, int64_t cols, int64_t depth, const BfPair* a, int64_t a_row,
             int64_t a_col, const BfPair* b, int64_t ldb, float* c, int64_t ldc, const float* base,
             int64_t ld_base) {
  const TilesOfA tiles_of_a =
      a_col == 1 ? TilesOfA{a, a_row, kSide} : TilesOfA{a, kSide, kPanel * kSide};
  // Whole tiles are loaded and stored, so what is less is computed beside C.
  const bool whole = rows % kSide == 0 && cols % kSide == 0;
  alignas(64) float beside[kPanel * kPanel];
  float* target = whole ? c : beside;
  const int64_t ld = whole ? ldc : kPanel;
  if (!whole && base != nullptr) {
    std::memset(beside, 0, sizeof beside);
    for (int64_t i = 0; i < rows; ++i) {
      std::memcpy(beside + i * ld, base + i * ld_base, cols * sizeof *base);
    }
    base = beside;
    ld_base = ld;
    written_before_tiles();
  }
  const bool past_l1 = depth * kPanel * static_cast<int64_t>(sizeof *a) > kPanelInL1;
  kMultiplyTiles[rows > kSide][cols > kSide][past_l1](depth, tiles_of_a, b, ldb, target, ld, base,
                                                      ld_base);
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

// A packed panel of A: dst[(s * kPanel + w) * kSide + i] holds the terms 2 p and 2 p + 1 of row w,
// for p = s * kSide + i. These are the tiles one after the other, each of them a run of memory.
// store_row(to, w, k, terms) writes the terms k ... k + terms <= 2 kSide of row w.
template <class StoreRow>
void pack_tiles_along(BfPair* dst, int64_t width, int64_t depth, const StoreRow& store_row) {
  for (int64_t k = 0; k < depth; k += 2 * kSide, dst += kPanel * kSide) {
    const int64_t terms = depth - k < 2 * kSide ? depth - k : 2 * kSide;
    if (width < kPanel || terms < 2 * kSide) std::memset(dst, 0, kPanel * kSide * sizeof *dst);
    for (int64_t w = 0; w < width; ++w) {
      store_row(reinterpret_cast<Bf16*>(dst + w * kSide), w, k, terms);
    }
  }
}

// The same where rows are neighbours in memory: load(k, w0, count) are the pairs of the terms k and
// k + 1 (zero past the depth) of the rows w0 ... w0 + count, which are transposed in registers.
template <class LoadPairs>
void pack_tiles_across(BfPair* dst, int64_t width, int64_t depth, const LoadPairs& load) {
  for (int64_t k = 0; k < depth; k += 2 * kSide, dst += kPanel * kSide) {
    for (int64_t w0 = 0; w0 < kPanel; w0 += kSide) {
      const int64_t count = width - w0 < kSide ? width - w0 : kSide;
      Vec<float> v[kSide];
      for (int64_t i = 0; i < kSide; ++i) {
        const bool any = k + 2 * i < depth && count > 0;
        v[i] =
            any ? Vec<float>{_mm512_castsi512_ps(load(k + 2 * i, w0, count))} : Vec<float>::zero();
      }
      transpose<kSide>(v);
      for (int64_t i = 0; i < kSide; ++i) {
        v[i].store(reinterpret_cast<float*>(dst + (w0 + i) * kSide));
      }
    }
  }
}

// A generated operand: each number is the product of two, rounded. Along the depth a row has one
// factor, or rows that are neighbours have the same one.
void pack_products(BfPair* dst, int64_t width, int64_t depth, const PackSource& source) {
  const Bf16* src = static_cast<const Bf16*>(source.src);
  const Bf16* scale = static_cast<const Bf16*>(source.scale);
  if (source.k_step == 1 && source.scale_k_step == 0) {
    src += source.k_offset[0];
    scale += source.scale_k_offset[0];
    pack_tiles_along(dst, width, depth, [&](Bf16* to, int64_t w, int64_t k, int64_t terms) {
      const Bf16* from = src + source.w_offset[w] + k;
      const Vec<float> factor = Vec<float>::set1(widen(scale[source.scale_w_offset[w]]));
      // Zeros after the last term, whatever the factor.
      const auto products = [&](int64_t first) {
        const int64_t n = terms - first < kSide ? terms - first : kSide;
        return n > 0 ? (Vec<float>::load(from + first, n) * factor).first(n) : Vec<float>::zero();
      };
      _mm512_storeu_si512(to, rounded(products(0), products(kSide)));
    });
    return;
  }
  // Of the rounded register, a number of the term and one of the next in turn.
  const __m512i interleaved = _mm512_setr_epi32(
      0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007, 0x180008,
      0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f);
  pack_tiles_across(dst, width, depth, [&](int64_t k, int64_t w0, int64_t count) {
    const auto products = [&](int64_t term) {
      if (term >= depth) return Vec<float>::zero();
      const Bf16 factor = scale[source.scale_w_offset[w0] + source.scale_k_offset[term]];
      return Vec<float>::load(src + source.w_offset[w0] + source.k_offset[term], count) *
             Vec<float>::set1(widen(factor));
    };
    return _mm512_maskz_permutexvar_epi16(~__mmask32{0}, interleaved,
                                          rounded(products(k), products(k + 1)));
  });
}

void pack_rows(Dtype, BfPair* dst, int64_t, int64_t width, int64_t depth,
               const PackSource& source) {
  if (source.scale != nullptr) {
    pack_products(dst, width, depth, source);
    return;
  }
  const Bf16* src = static_cast<const Bf16*>(source.src) + source.k_offset[0];
  const int64_t step = source.k_step;
  if (step != 1 && depth > 1 && contiguous_across(source, width)) {
    src += source.w_offset[0];
    pack_tiles_across(dst, width, depth, [&](int64_t k, int64_t w0, int64_t count) {
      const Bf16* low = src + w0 + k * step;
      return load_pairs(low, k + 1 < depth ? low + step : nullptr, count);
    });
    return;
  }
  pack_tiles_along(dst, width, depth, [&](Bf16* to, int64_t w, int64_t k, int64_t terms) {
    const Bf16* from = src + source.w_offset[w] + k * step;
    if (terms == 2 * kSide && step == 1) {
      std::memcpy(to, from, 2 * kSide * sizeof *to);
    } else {
      for (int64_t i = 0; i < terms; ++i) to[i] = from[i * step];
    }
  });
}

// Tiles are loaded from L2 nearly as fast as they are multiplied. What counts is L3: with 2048
// terms C hardly ever waits in memory for the rest of its sums, and what is packed of A takes half
// of a 2 MiB L2, beside the block of B. A sum does not depend on kKcPairs: the terms come in the
// same order, and float32 keeps what a tile holds.
constexpr int kKcPairs = 1024;
constexpr int kPackedBytes = 1 << 20;
static_assert(kKcPairs % kSide == 0);

constexpr GemmKernels<float, BfPair> kTiles = {.mr = kPanel,
                                               .nr = kPanel,
                                               .kc = kKcPairs,
                                               .depth_step = kSide,
                                               .row_tiles = true,
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
