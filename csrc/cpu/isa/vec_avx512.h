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
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm512_fmadd_ps(a.v, b.v, c.v)};
}
// Within each quarter first, as add_reduced() does for eight of them.
inline float reduce_add(Vec<float> a) {
  __m512 r = _mm512_add_ps(a.v, _mm512_maskz_permute_ps(kAll, a.v, 0x4e));
  r = _mm512_add_ps(r, _mm512_maskz_permute_ps(kAll, r, 0xb1));
  r = _mm512_add_ps(r, _mm512_maskz_shuffle_f32x4(kAll, r, r, 0xb1));
  r = _mm512_add_ps(r, _mm512_maskz_shuffle_f32x4(kAll, r, r, 0x4e));
  return _mm512_cvtss_f32(r);
}
// Each quarter: the pairs of a's lanes added, then of b's.
inline __m512 add_pairs(__m512 a, __m512 b) {
  return _mm512_add_ps(_mm512_maskz_unpacklo_ps(kAll, a, b), _mm512_maskz_unpackhi_ps(kAll, a, b));
}
inline __m512 add_halves(__m512 a, __m512 b) {
  const __m512d c = _mm512_castps_pd(a), d = _mm512_castps_pd(b);
  return _mm512_add_ps(_mm512_castpd_ps(_mm512_maskz_unpacklo_pd(0xff, c, d)),
                       _mm512_castpd_ps(_mm512_maskz_unpackhi_pd(0xff, c, d)));
}
// to[i] += reduce_add(a[i]), the same bits in fewer steps: the eight are transposed on the way.
inline void add_reduced(const Vec<float> (&a)[8], float* to) {
  const __m512 low = add_halves(add_pairs(a[0].v, a[1].v), add_pairs(a[2].v, a[3].v));
  const __m512 high = add_halves(add_pairs(a[4].v, a[5].v), add_pairs(a[6].v, a[7].v));
  __m512 r = _mm512_add_ps(_mm512_maskz_shuffle_f32x4(kAll, low, high, 0x88),
                           _mm512_maskz_shuffle_f32x4(kAll, low, high, 0xdd));
  r = _mm512_add_ps(r, _mm512_maskz_shuffle_f32x4(kAll, r, r, 0xb1));
  r = _mm512_maskz_shuffle_f32x4(kAll, r, r, 0x08);
  _mm256_storeu_ps(to,
                   _mm256_add_ps(_mm256_loadu_ps(to), _mm512_maskz_extractf32x8_ps(0xff, r, 0)));
}

inline void interleave(Vec<float> a, Vec<float> b, Vec<float>& low, Vec<float>& high) {
  const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
  const __m512i second =
      _mm512_setr_epi32(8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
  low = {_mm512_permutex2var_ps(a.v, first, b.v)};
  high = {_mm512_permutex2var_ps(a.v, second, b.v)};
}
inline void interleave(Vec<double> a, Vec<double> b, Vec<double>& low, Vec<double>& high) {
  low = {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(0, 8, 1, 9, 2, 10, 3, 11), b.v)};
  high = {_mm512_permutex2var_pd(a.v, _mm512_setr_epi64(4, 12, 5, 13, 6, 14, 7, 15), b.v)};
}
inline Vec<float> swap_pairs(Vec<float> a) { return {_mm512_maskz_permute_ps(kAll, a.v, 0xb1)}; }
inline Vec<double> swap_pairs(Vec<double> a) { return {_mm512_maskz_permute_pd(0xff, a.v, 0x55)}; }

inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm512_add_pd(a.v, b.v)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm512_mul_pd(a.v, b.v)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm512_fmadd_pd(a.v, b.v, c.v)};
}
inline double reduce_add(Vec<double> a) {
  __m512d r = _mm512_add_pd(a.v, _mm512_maskz_permute_pd(0xff, a.v, 0x55));
  r = _mm512_add_pd(r, _mm512_maskz_shuffle_f64x2(0xff, r, r, 0xb1));
  r = _mm512_add_pd(r, _mm512_maskz_shuffle_f64x2(0xff, r, r, 0x4e));
  return _mm512_cvtsd_f64(r);
}
inline __m512d add_pairs(__m512d a, __m512d b) {
  return _mm512_add_pd(_mm512_maskz_unpacklo_pd(0xff, a, b), _mm512_maskz_unpackhi_pd(0xff, a, b));
}
inline __m512d add_quarters(__m512d a, __m512d b) {
  return _mm512_add_pd(_mm512_maskz_shuffle_f64x2(0xff, a, b, 0x88),
                       _mm512_maskz_shuffle_f64x2(0xff, a, b, 0xdd));
}
inline void add_reduced(const Vec<double> (&a)[8], double* to) {
  const __m512d low = add_quarters(add_pairs(a[0].v, a[1].v), add_pairs(a[2].v, a[3].v));
  const __m512d high = add_quarters(add_pairs(a[4].v, a[5].v), add_pairs(a[6].v, a[7].v));
  _mm512_storeu_pd(to, _mm512_add_pd(_mm512_loadu_pd(to), add_quarters(low, high)));
}

}  // namespace
}  // namespace matcalc::cpu
