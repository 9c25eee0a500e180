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

void pack_pairs(Dtype, BfPair* dst, int64_t panel, int64_t width, int64_t depth,
                const PackSource& source) {
  constexpr int kCols = kTileVectors * Vec<float>::kWidth;
  if (panel == kCols) {
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
          .nc = like.nc,
          .tile = tile<float, BfPair>,
          .pack_rows = pack_pairs,
          .pack_cols = pack_pairs,
          .load = like.load,
          .store = like.store};
}

constexpr GemmKernels<float, BfPair> kPairs = make_pair_kernels();

}  // namespace

const GemmKernels<float, BfPair>& gemm_kernels_avx512bf16() { return kPairs; }

}  // namespace matcalc::cpu

#endif
