// Vec in 512-bit registers: AVX-512 F, BW, VL, DQ.
#pragma once

#include <immintrin.h>

#include "vec.h"

namespace matcalc::cpu {
namespace {

constexpr int kVectorRegisters = 32;

// The first n lanes set, n <= 16. Masked loads and stores touch no memory of the other lanes.
inline __mmask16 first_lanes16(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }
inline __mmask8 first_lanes8(int64_t n) { return static_cast<__mmask8>((1u << n) - 1); }

// Every lane is written by the zero-masked forms. The unmasked ones start from an undefined
// register, about which gcc 12 warns.
constexpr __mmask16 kAll = 0xffff;

inline __m512 widen16(__m256i v, const Bf16*) {
  return _mm512_castsi512_ps(
      _mm512_maskz_slli_epi32(kAll, _mm512_maskz_cvtepu16_epi32(kAll, v), 16));
}
inline __m512 widen16(__m256i v, const F16*) { return _mm512_maskz_cvtph_ps(kAll, v); }

inline __m256i narrow16(__m512 v, const F16*) {
  return _mm512_maskz_cvtps_ph(kAll, v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m256i narrow16(__m512 v, const Bf16*) {
  const __m512i bits = _mm512_castps_si512(v);
  const __m512i odd =
      _mm512_and_si512(_mm512_maskz_srli_epi32(kAll, bits, 16), _mm512_set1_epi32(1));
  __m512i r = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  r = _mm512_maskz_srli_epi32(kAll, r, 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(v, v, _CMP_UNORD_Q);
  r = _mm512_mask_mov_epi32(r, nan, _mm512_set1_epi32(0x7fc0));
  return _mm512_maskz_cvtepi32_epi16(kAll, r);
}

template <>
struct Vec<float> {
  static constexpr int kWidth = 16;
  __m512 v;

  static inline Vec zero() { return {_mm512_setzero_ps()}; }
  static inline Vec set1(float t) { return {_mm512_set1_ps(t)}; }
  static inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static inline Vec load(const float* p, int64_t n) {
    return {_mm512_maskz_loadu_ps(first_lanes16(n), p)};
  }
  template <class T>  // Bf16, F16
  static inline Vec load(const T* p) {
    return {widen16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), p)};
  }
  template <class T>
  static inline Vec load(const T* p, int64_t n) {
    return {widen16(_mm256_maskz_loadu_epi16(first_lanes16(n), p), p)};
  }
  inline Vec first(int64_t n) const { return {_mm512_maskz_mov_ps(first_lanes16(n), v)}; }
  inline void store(float* p) const { _mm512_storeu_ps(p, v); }
  inline void store(float* p, int64_t n) const { _mm512_mask_storeu_ps(p, first_lanes16(n), v); }
  template <class T>
  inline void store(T* p) const {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow16(v, p));
  }
  template <class T>
  inline void store(T* p, int64_t n) const {
    _mm256_mask_storeu_epi16(p, first_lanes16(n), narrow16(v, p));
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 8;
  __m512d v;

  static inline Vec zero() { return {_mm512_setzero_pd()}; }
  static inline Vec set1(double t) { return {_mm512_set1_pd(t)}; }
  static inline Vec load(const double* p) { return {_mm512_loadu_pd(p)}; }
  static inline Vec load(const double* p, int64_t n) {
    return {_mm512_maskz_loadu_pd(first_lanes8(n), p)};
  }
  inline Vec first(int64_t n) const { return {_mm512_maskz_mov_pd(first_lanes8(n), v)}; }
  inline void store(double* p) const { _mm512_storeu_pd(p, v); }
  inline void store(double* p, int64_t n) const { _mm512_mask_storeu_pd(p, first_lanes8(n), v); }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec<float> operator-(Vec<float> a, Vec<float> b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
inline float reduce_add(Vec<float> a) {
  const __m256 half = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, a.v, 0),
                                    _mm512_maskz_extractf32x8_ps(0xff, a.v, 1));
  __m128 r = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
  r = _mm_add_ps(r, _mm_movehl_ps(r, r));
  r = _mm_add_ss(r, _mm_movehdup_ps(r));
  return _mm_cvtss_f32(r);
}

inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Vec<double> operator-(Vec<double> a, Vec<double> b) { return {_mm512_sub_pd(a.v, b.v)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
inline double reduce_add(Vec<double> a) {
  const __m256d half = _mm256_add_pd(_mm512_maskz_extractf64x4_pd(0xff, a.v, 0),
                                     _mm512_maskz_extractf64x4_pd(0xff, a.v, 1));
  __m128d r = _mm_add_pd(_mm256_castpd256_pd128(half), _mm256_extractf128_pd(half, 1));
  r = _mm_add_sd(r, _mm_unpackhi_pd(r, r));
  return _mm_cvtsd_f64(r);
}

}  // namespace
}  // namespace matcalc::cpu
