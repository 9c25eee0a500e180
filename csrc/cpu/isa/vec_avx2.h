// Vec in 256-bit registers: AVX2, FMA, F16C.
#pragma once

#include <immintrin.h>

#include "vec.h"

namespace matcalc::cpu {
namespace {

constexpr int kVectorRegisters = 16;

// The first n lanes set, for the masked loads, which touch no memory of the others. A masked store
// is 18 operations on AMD's processors up to Zen 3: what is stored of a register, which may be all
// of it, goes by halves (products of 8 x 8 take half the time, of 16 x 16 two thirds).
inline __m256i first_lanes32(int64_t n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(n)),
                            _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
inline __m256i first_lanes64(int64_t n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}

// AVX2 has no masked load of 16-bit elements; n <= 8. The sizes are spelled out so that the
// copies become plain moves.
inline __m128i load_first16(const void* p, int64_t n) {
  const char* from = static_cast<const char*>(p);
  uint16_t lanes[8] = {};
  char* to = reinterpret_cast<char*>(lanes);
  if (n & 8) return _mm_loadu_si128(static_cast<const __m128i*>(p));
  if (n & 4) {
    std::memcpy(to, from, 8);
    to += 8;
    from += 8;
  }
  if (n & 2) {
    std::memcpy(to, from, 4);
    to += 4;
    from += 4;
  }
  if (n & 1) std::memcpy(to, from, 2);
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(lanes));
}
inline void store_first16(__m128i v, void* p, int64_t n) {
  char* to = static_cast<char*>(p);
  uint16_t lanes[8];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(lanes), v);
  const char* from = reinterpret_cast<const char*>(lanes);
  if (n & 8) {
    std::memcpy(to, from, 16);
    return;
  }
  if (n & 4) {
    std::memcpy(to, from, 8);
    to += 8;
    from += 8;
  }
  if (n & 2) {
    std::memcpy(to, from, 4);
    to += 4;
    from += 4;
  }
  if (n & 1) std::memcpy(to, from, 2);
}

inline __m256 widen8(__m128i v, const Bf16*) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(v), 16));
}
inline __m256 widen8(__m128i v, const F16*) { return _mm256_cvtph_ps(v); }

inline __m128i narrow8(__m256 v, const F16*) {
  return _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
inline __m128i narrow8(__m256 v, const Bf16*) {
  const __m256i bits = _mm256_castps_si256(v);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i r = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
  r = _mm256_srli_epi32(r, 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(v, v, _CMP_UNORD_Q));
  r = _mm256_blendv_epi8(r, _mm256_set1_epi32(0x7fc0), nan);
  return _mm_packus_epi32(_mm256_castsi256_si128(r), _mm256_extracti128_si256(r, 1));
}

template <>
struct Vec<float> {
  static constexpr int kWidth = 8;
  __m256 v;

  static inline Vec zero() { return {_mm256_setzero_ps()}; }
  static inline Vec set1(float t) { return {_mm256_set1_ps(t)}; }
  static inline Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static inline Vec load(const float* p, int64_t n) {
    return {_mm256_maskload_ps(p, first_lanes32(n))};
  }
  template <class T>  // Bf16, F16
  static inline Vec load(const T* p) {
    return {widen8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)), p)};
  }
  template <class T>
  static inline Vec load(const T* p, int64_t n) {
    return {widen8(load_first16(p, n), p)};
  }
  inline Vec first(int64_t n) const {
    return {_mm256_and_ps(v, _mm256_castsi256_ps(first_lanes32(n)))};
  }
  inline void store(float* p) const { _mm256_storeu_ps(p, v); }
  inline void store(float* p, int64_t n) const {
    if (n >= kWidth) {
      store(p);
      return;
    }
    __m128 part = _mm256_castps256_ps128(v);
    if (n & 4) {
      _mm_storeu_ps(p, part);
      part = _mm256_extractf128_ps(v, 1);
      p += 4;
    }
    if (n & 2) {
      _mm_storel_pi(reinterpret_cast<__m64*>(p), part);
      part = _mm_movehl_ps(part, part);
      p += 2;
    }
    if (n & 1) _mm_store_ss(p, part);
  }
  template <class T>
  inline void store(T* p) const {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), narrow8(v, p));
  }
  template <class T>
  inline void store(T* p, int64_t n) const {
    store_first16(narrow8(v, p), p, n);
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 4;
  __m256d v;

  static inline Vec zero() { return {_mm256_setzero_pd()}; }
  static inline Vec set1(double t) { return {_mm256_set1_pd(t)}; }
  static inline Vec load(const double* p) { return {_mm256_loadu_pd(p)}; }
  static inline Vec load(const double* p, int64_t n) {
    return {_mm256_maskload_pd(p, first_lanes64(n))};
  }
  inline Vec first(int64_t n) const {
    return {_mm256_and_pd(v, _mm256_castsi256_pd(first_lanes64(n)))};
  }
  inline void store(double* p) const { _mm256_storeu_pd(p, v); }
  inline void store(double* p, int64_t n) const {
    if (n >= kWidth) {
      store(p);
      return;
    }
    __m128d part = _mm256_castpd256_pd128(v);
    if (n & 2) {
      _mm_storeu_pd(p, part);
      part = _mm256_extractf128_pd(v, 1);
      p += 2;
    }
    if (n & 1) _mm_store_sd(p, part);
  }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return {_mm256_fmadd_ps(a.v, b.v, c.v)};
}
inline float reduce_add(Vec<float> a) {
  __m128 r = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  r = _mm_add_ps(r, _mm_movehl_ps(r, r));
  r = _mm_add_ss(r, _mm_movehdup_ps(r));
  return _mm_cvtss_f32(r);
}

inline void interleave(Vec<float> a, Vec<float> b, Vec<float>& low, Vec<float>& high) {
  const __m256 even = _mm256_unpacklo_ps(a.v, b.v), odd = _mm256_unpackhi_ps(a.v, b.v);
  low = {_mm256_permute2f128_ps(even, odd, 0x20)};
  high = {_mm256_permute2f128_ps(even, odd, 0x31)};
}
inline void interleave(Vec<double> a, Vec<double> b, Vec<double>& low, Vec<double>& high) {
  const __m256d even = _mm256_unpacklo_pd(a.v, b.v), odd = _mm256_unpackhi_pd(a.v, b.v);
  low = {_mm256_permute2f128_pd(even, odd, 0x20)};
  high = {_mm256_permute2f128_pd(even, odd, 0x31)};
}
// load_transposed() of gemm_kernels.inc for as many rows as a register has numbers: halves come
// from memory where they belong, so that nothing crosses the middle of a register.
inline void load_transposed(const float* (&row)[8], int64_t k, Vec<float> (&v)[8]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256 rows[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) {
      const __m128 low = _mm_loadu_ps(row[i] + k + 4 * half);
      const __m128 high = _mm_loadu_ps(row[i + 4] + k + 4 * half);
      rows[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(low), high, 1);
    }
    const __m256 a = _mm256_unpacklo_ps(rows[0], rows[1]), b = _mm256_unpacklo_ps(rows[2], rows[3]);
    const __m256 c = _mm256_unpackhi_ps(rows[0], rows[1]), d = _mm256_unpackhi_ps(rows[2], rows[3]);
    v[4 * half] = {_mm256_shuffle_ps(a, b, 0x44)};
    v[4 * half + 1] = {_mm256_shuffle_ps(a, b, 0xee)};
    v[4 * half + 2] = {_mm256_shuffle_ps(c, d, 0x44)};
    v[4 * half + 3] = {_mm256_shuffle_ps(c, d, 0xee)};
  }
}
inline void load_transposed(const double* (&row)[4], int64_t k, Vec<double> (&v)[4]) {
#pragma GCC unroll 2
  for (int half = 0; half < 2; ++half) {
    __m256d rows[2];
#pragma GCC unroll 2
    for (int i = 0; i < 2; ++i) {
      const __m128d low = _mm_loadu_pd(row[i] + k + 2 * half);
      const __m128d high = _mm_loadu_pd(row[i + 2] + k + 2 * half);
      rows[i] = _mm256_insertf128_pd(_mm256_castpd128_pd256(low), high, 1);
    }
    v[2 * half] = {_mm256_unpacklo_pd(rows[0], rows[1])};
    v[2 * half + 1] = {_mm256_unpackhi_pd(rows[0], rows[1])};
  }
}

inline Vec<float> swap_pairs(Vec<float> a) { return {_mm256_permute_ps(a.v, 0xb1)}; }
inline Vec<double> swap_pairs(Vec<double> a) { return {_mm256_permute_pd(a.v, 0x5)}; }

inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {_mm256_add_pd(a.v, b.v)}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {_mm256_mul_pd(a.v, b.v)}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return {_mm256_fmadd_pd(a.v, b.v, c.v)};
}
inline double reduce_add(Vec<double> a) {
  __m128d r = _mm_add_pd(_mm256_castpd256_pd128(a.v), _mm256_extractf128_pd(a.v, 1));
  r = _mm_add_sd(r, _mm_unpackhi_pd(r, r));
  return _mm_cvtsd_f64(r);
}

}  // namespace
}  // namespace matcalc::cpu
