// The gemm micro-kernel for AVX512-BF16: products of pairs of bfloat16 numbers, summed in float32.
#if defined(__x86_64__)

#include <cstddef>
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

inline uint32_t pair_of(Bf16 low, Bf16 high) {
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
}

// dst[w] = the pair of low[w] and high[w], for w < count <= 16.
inline void store_pairs(const Bf16* low, const Bf16* high, int64_t count, BfPair* dst) {
  const __mmask16 lanes = first_lanes16(count);
  const __m512i first = _mm512_maskz_cvtepu16_epi32(kAll, _mm256_maskz_loadu_epi16(lanes, low));
  const __m512i second = _mm512_maskz_cvtepu16_epi32(kAll, _mm256_maskz_loadu_epi16(lanes, high));
  const __m512i pairs = _mm512_or_si512(first, _mm512_maskz_slli_epi32(kAll, second, 16));
  _mm512_mask_storeu_epi32(dst, lanes, pairs);
}

// dst[p * panel + w] holds the terms 2 p and 2 p + 1, a zero after the last of an odd depth.
template <int kPanel>
void pack_pairs_panel(BfPair* dst, int64_t width, int64_t depth, const PackSource& source) {
  const Bf16* src = static_cast<const Bf16*>(source.src) + source.k_offset[0];
  const int64_t step = source.k_step;
  const int64_t pairs = depth / 2;
  const bool odd = depth % 2 != 0;
  if (width < kPanel) {
    for (int64_t p = 0; p < pairs + odd; ++p) {
      for (int64_t w = width; w < kPanel; ++w) dst[p * kPanel + w].bits = 0;
    }
  }
  bool contiguous = true;  // along w
  for (int64_t w = 1; contiguous && w < width; ++w) {
    contiguous = source.w_offset[w] == source.w_offset[0] + w;
  }
  if (contiguous) {
    const Bf16* first = src + source.w_offset[0];
    for (int64_t p = 0; p < pairs; ++p) {
      const Bf16* low = first + 2 * p * step;
      const Bf16* high = low + step;
      BfPair* target = dst + p * kPanel;
      if (width == kPanel) {  // a length that the compiler knows
#pragma GCC unroll 4
        for (int w = 0; w < kPanel; w += 16) {
          store_pairs(low + w, high + w, kPanel - w < 16 ? kPanel - w : 16, target + w);
        }
      } else {
        for (int64_t w = 0; w < width; w += 16) {
          store_pairs(low + w, high + w, width - w < 16 ? width - w : 16, target + w);
        }
      }
    }
  } else if (step == 1) {  // a pair is moved as the float of the same bits
    pack_transposed<kPanel>(
        reinterpret_cast<float*>(dst), width, pairs,
        [&](int64_t w) { return reinterpret_cast<const float*>(src + source.w_offset[w]); },
        nullptr);
  } else {
    for (int64_t w = 0; w < width; ++w) {
      const Bf16* row = src + source.w_offset[w];
      for (int64_t p = 0; p < pairs; ++p) {
        dst[p * kPanel + w].bits = pair_of(row[2 * p * step], row[(2 * p + 1) * step]);
      }
    }
  }
  if (odd) {
    for (int64_t w = 0; w < width; ++w) {
      const Bf16 last = src[source.w_offset[w] + (depth - 1) * step];
      dst[pairs * kPanel + w].bits = pair_of(last, {0});
    }
  }
}

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
  return {like.mr,    like.nr, like.kc, like.nc,   tile<float, BfPair>,
          pack_pairs, nullptr, nullptr, like.load, like.store};
}

constexpr GemmKernels<float, BfPair> kPairs = make_pair_kernels();

}  // namespace

const GemmKernels<float, BfPair>& gemm_kernels_avx512bf16() { return kPairs; }

}  // namespace matcalc::cpu

#endif
