// The gemm micro-kernel for AVX512-BF16: products of pairs of bfloat16 numbers, summed in float32.
#if defined(__x86_64__)

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "gemm_kernels.h"
#include "vec_avx512.h"
#include "vec_pairs.h"

namespace matcalc::cpu {
namespace {

// 24 accumulators + 3 for B + 1 broadcast <= 32 zmm.
constexpr int kTileRows = 8;
constexpr int kTileVectors = 3;

#include "gemm_kernels.inc"

#include "pair_kernels.inc"

// One panel of a generated operand: each number is the product of two, rounded.
void pack_products(BfPair* dst, int64_t width, int64_t depth, const PackSource& source) {
  constexpr int64_t kDepth = 256;  // at a time
  Bf16 products[kTileRows][kDepth];
  const Bf16* src = static_cast<const Bf16*>(source.src);
  const Bf16* scale = static_cast<const Bf16*>(source.scale);
  const bool along = source.k_step == 1 && source.scale_k_step == 0;
  bool across = contiguous_across(source, width) && width == kTileRows;
  for (int64_t w = 1; across && w < width; ++w) {
    across = source.scale_w_offset[w] == source.scale_w_offset[0];
  }
  int64_t w_offset[kTileRows], k_offset[kDepth];
  PackSource rows{};
  rows.src = products;
  rows.w_offset = w_offset;
  rows.k_offset = k_offset;
  rows.k_step = across ? kTileRows : 1;
  for (int64_t w = 0; w < kTileRows; ++w) w_offset[w] = across ? w : w * kDepth;
  for (int64_t k0 = 0; k0 < depth; k0 += kDepth) {
    const int64_t count = depth - k0 < kDepth ? depth - k0 : kDepth;
    const int64_t* from = source.k_offset + k0;
    const int64_t* scale_from = source.scale_k_offset + k0;
    k_offset[0] = 0;
    if (across) {  // products[k] are the rows' kTileRows numbers of one k
      Bf16* to = &products[0][0];
      for (int64_t k = 0; k < count; ++k) {
        const float factor = widen(scale[source.scale_w_offset[0] + scale_from[k]]);
        copy_scaled<false>(src + source.w_offset[0] + from[k], kTileRows, factor,
                           to + k * kTileRows);
      }
    } else {
      for (int64_t w = 0; w < width; ++w) {
        const Bf16* row = src + source.w_offset[w];
        const Bf16* factors = scale + source.scale_w_offset[w];
        if (along) {
          copy_scaled<false>(row + from[0], count, widen(factors[scale_from[0]]), products[w]);
        } else {
          for (int64_t k = 0; k < count; ++k) {
            narrow(widen(row[from[k]]) * widen(factors[scale_from[k]]), products[w][k]);
          }
        }
      }
    }
    pack_pairs_panel<kTileRows>(dst + k0 / 2 * kTileRows, width, count, rows);
  }
}

void pack_pairs(Dtype, BfPair* dst, int64_t panel, int64_t width, int64_t depth,
                const PackSource& source) {
  constexpr int kCols = kTileVectors * Vec<float>::kWidth;
  if (source.scale != nullptr) {
    pack_products(dst, width, depth, source);
  } else if (panel == kCols) {
    pack_pairs_panel<kCols>(dst, width, depth, source);
  } else {
    pack_pairs_panel<kTileRows>(dst, width, depth, source);
  }
}

// The blocks have as many bytes as those of float32, and so twice the depth.
constexpr GemmKernels<float, BfPair> make_pair_kernels() {
  constexpr GemmKernels<float> like = make_gemm_kernels<float>();
  return {.mr = like.mr,
          .nr = like.nr,
          .kc = like.kc,
          .tile = tile<float, BfPair>,
          .pack_rows = pack_pairs,
          .pack_cols = pack_pairs,
          .load = like.load,
          .store = store_sums};
}

constexpr GemmKernels<float, BfPair> kPairs = make_pair_kernels();

}  // namespace

const GemmKernels<float, BfPair>& gemm_kernels_avx512bf16() { return kPairs; }

}  // namespace matcalc::cpu

#endif
