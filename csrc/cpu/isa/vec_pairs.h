// Pairs of bfloat16 numbers for AVX512-BF16, to be included after vec_avx512.h. The instruction
// takes subnormal numbers, below 2^-126 in size, for zero.
#pragma once

#include "gemm_kernels.h"

namespace matcalc::cpu {
namespace {

// Sixteen pairs.
template <>
struct Vec<BfPair> {
  __m512i v;

  static inline Vec set1(BfPair pair) { return {_mm512_set1_epi32(static_cast<int>(pair.bits))}; }
  static inline Vec load(const BfPair* p) { return {_mm512_loadu_si512(p)}; }
  static inline Vec load(const BfPair* p, int64_t n) {
    return {_mm512_maskz_loadu_epi32(first_lanes16(n), p)};
  }
};

inline Vec<float> fma(Vec<BfPair> a, Vec<BfPair> b, Vec<float> c) {
  return {_mm512_dpbf16_ps(c.v, (__m512bh)a.v, (__m512bh)b.v)};
}

}  // namespace
}  // namespace matcalc::cpu
