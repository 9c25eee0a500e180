// The intrinsics of AVX-512 F, BW, VL, DQ and BF16 that the kernels use, on any processor with
// AVX2, FMA and F16C, by what Intel's manual says of the instructions: included before everything
// else where a kernel is compiled for the tests. A register is an array of lanes here, and a masked
// lane's memory is not touched.
#pragma once

#include <immintrin.h>

#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace avx512_emulation {

// Of the manual's types, those whose lanes have another type than the compiler's.
using U16x16 [[gnu::vector_size(32)]] = uint16_t;
using U16x32 [[gnu::vector_size(64)]] = uint16_t;
using U32x16 [[gnu::vector_size(64)]] = uint32_t;
using U64x8 [[gnu::vector_size(64)]] = uint64_t;

template <class V>
using Lane = std::remove_cvref_t<decltype(std::declval<V&>()[0])>;
template <class V>
constexpr int kLanes = sizeof(V) / sizeof(Lane<V>);

template <class To, class From>
inline To cast(From v) {
  static_assert(sizeof(To) == sizeof(From));
  return std::bit_cast<To>(v);
}

constexpr bool in(uint64_t mask, int lane) { return mask >> lane & 1; }

// make(lane) for the lanes of the mask, zero for the others.
template <class V, class Make>
inline V lanes(uint64_t mask, const Make& make) {
  V r = {};
  for (int i = 0; i < kLanes<V>; ++i) {
    if (in(mask, i)) r[i] = make(i);
  }
  return r;
}
constexpr uint64_t kAll = ~uint64_t{0};

template <class V>
inline V load(const void* p, uint64_t mask = kAll) {
  const char* const bytes = static_cast<const char*>(p);
  return lanes<V>(mask, [&](int i) {
    Lane<V> number;
    std::memcpy(&number, bytes + i * sizeof number, sizeof number);
    return number;
  });
}

template <class V>
inline void store(void* p, V v, uint64_t mask = kAll) {
  char* const bytes = static_cast<char*>(p);
  for (int i = 0; i < kLanes<V>; ++i) {
    const Lane<V> number = v[i];
    if (in(mask, i)) std::memcpy(bytes + i * sizeof number, &number, sizeof number);
  }
}

template <class V>
inline V repeat(Lane<V> number) {
  return lanes<V>(kAll, [&](int) { return number; });
}
template <class V, class... Numbers>
inline __m512i numbers(Numbers... number) {
  return cast<__m512i>(V{static_cast<Lane<V>>(number)...});
}
template <class V>
inline Lane<V> first(V a) {
  return a[0];
}
template <class V>
inline V move(uint64_t mask, V a) {
  return lanes<V>(mask, [&](int i) { return a[i]; });
}

template <class V>
inline V add(V a, V b) {
  return a + b;
}
template <class V>
inline V subtract(V a, V b) {
  return a - b;
}
template <class V>
inline V multiply(V a, V b) {
  return a * b;
}
template <class V>
inline V fused_multiply_add(V a, V b, V c) {
  return lanes<V>(kAll, [&](int i) { return std::fma(a[i], b[i], c[i]); });
}

// From the same 128 bits of both sources, as is the rule of the older instructions.
template <class V, class Pick>
inline V within_quarters(uint64_t mask, const Pick& pick) {
  constexpr int kQuarter = kLanes<V> / 4;
  return lanes<V>(mask, [&](int i) { return pick(i / kQuarter * kQuarter, i % kQuarter); });
}
inline __m512 permute(uint64_t mask, __m512 a, int control) {
  return within_quarters<__m512>(
      mask, [&](int quarter, int i) { return a[quarter + (control >> (2 * i) & 3)]; });
}
inline __m512d permute(uint64_t mask, __m512d a, int control) {
  return lanes<__m512d>(mask, [&](int i) { return a[i / 2 * 2 + (control >> i & 1)]; });
}
template <class V>
inline V unpack(uint64_t mask, V a, V b, bool high) {
  const int start = high ? kLanes<V> / 8 : 0;
  return within_quarters<V>(mask, [&](int quarter, int i) {
    return i % 2 ? b[quarter + start + i / 2] : a[quarter + start + i / 2];
  });
}

// Two quarters of a, then two of b.
template <class V>
inline V shuffle_quarters(uint64_t mask, V a, V b, int control) {
  constexpr int kQuarter = kLanes<V> / 4;
  return lanes<V>(mask, [&](int i) {
    const int to = i / kQuarter, from = control >> (2 * to) & 3;
    return (to < 2 ? a : b)[from * kQuarter + i % kQuarter];
  });
}

template <class V, class Index>
inline V permute_two(V a, Index index, V b) {
  return lanes<V>(kAll, [&](int i) {
    const int from = static_cast<int>(index[i] & (2 * kLanes<V> - 1));
    return from < kLanes<V> ? a[from] : b[from - kLanes<V>];
  });
}
inline __m512i permute_16(uint64_t mask, __m512i index, __m512i a) {
  const U16x32 from = cast<U16x32>(index), numbers = cast<U16x32>(a);
  return cast<__m512i>(lanes<U16x32>(mask, [&](int i) { return numbers[from[i] & 31]; }));
}

inline __m256 half(uint64_t mask, __m512 a, int which) {
  return lanes<__m256>(mask, [&](int i) { return a[8 * which + i]; });
}
inline __m512 join(__m256 low, __m256 high) {
  return lanes<__m512>(kAll, [&](int i) { return i < 8 ? low[i] : high[i - 8]; });
}

template <class Make>
inline __m512i of_32(uint64_t mask, const Make& make) {
  return cast<__m512i>(lanes<U32x16>(mask, make));
}
inline __m512i widen_16(uint64_t mask, __m256i a) {
  const U16x16 numbers = cast<U16x16>(a);
  return of_32(mask, [&](int i) { return uint32_t{numbers[i]}; });
}
inline __m256i narrow_32(uint64_t mask, __m512i a) {
  const U32x16 numbers = cast<U32x16>(a);
  return cast<__m256i>(
      lanes<U16x16>(mask, [&](int i) { return static_cast<uint16_t>(numbers[i]); }));
}
inline __m512i shift_left(uint64_t mask, __m512i a, unsigned by) {
  const U32x16 numbers = cast<U32x16>(a);
  return of_32(mask, [&](int i) { return by < 32 ? numbers[i] << by : 0; });
}
inline __m512i shift_right(uint64_t mask, __m512i a, unsigned by) {
  const U32x16 numbers = cast<U32x16>(a);
  return of_32(mask, [&](int i) { return by < 32 ? numbers[i] >> by : 0; });
}
inline __m512i add_32(__m512i a, __m512i b) {
  return cast<__m512i>(cast<U32x16>(a) + cast<U32x16>(b));
}
inline __m512i bits_and(__m512i a, __m512i b) { return a & b; }
inline __m512i bits_or(__m512i a, __m512i b) { return a | b; }
inline __m512i blend_32(__m512i other, uint64_t mask, __m512i a) {
  const U32x16 others = cast<U32x16>(other), numbers = cast<U32x16>(a);
  return of_32(kAll, [&](int i) { return in(mask, i) ? numbers[i] : others[i]; });
}

// F16C has the conversions of half a register.
inline __m512 from_half(uint64_t mask, __m256i a) {
  const __m512 r = join(_mm256_cvtph_ps(_mm256_castsi256_si128(a)),
                        _mm256_cvtph_ps(_mm256_extractf128_si256(a, 1)));
  return move(mask, r);
}
template <int kRounding>
inline __m256i to_half(uint64_t mask, __m512 a) {
  const __m256i r = _mm256_set_m128i(_mm256_cvtps_ph(half(kAll, a, 1), kRounding),
                                     _mm256_cvtps_ph(half(kAll, a, 0), kRounding));
  return cast<__m256i>(move(mask, cast<U16x16>(r)));
}

template <class Test>
inline uint16_t mask_where(const Test& test) {
  uint32_t mask = 0;
  for (int i = 0; i < 16; ++i) mask |= static_cast<uint32_t>(bool{test(i)}) << i;
  return static_cast<uint16_t>(mask);
}
template <int kPredicate>
inline uint16_t compare(__m512 a, __m512 b) {
  static_assert(kPredicate == _CMP_UNORD_Q, "the kernels ask for no other");
  return mask_where([&](int i) { return std::isnan(a[i]) || std::isnan(b[i]); });
}
// The categories in the order of their bits: quiet NaN, 0, -0, infinity, -infinity, subnormal,
// negative and finite, signalling NaN.
inline uint16_t classes(__m512 a, int categories) {
  return mask_where([&](int i) {
    const float v = a[i];
    const bool quiet = std::bit_cast<uint32_t>(v) >> 22 & 1, negative = std::signbit(v);
    const bool is[8] = {std::isnan(v) && quiet,
                        v == 0 && !negative,
                        v == 0 && negative,
                        std::isinf(v) && !negative,
                        std::isinf(v) && negative,
                        std::fpclassify(v) == FP_SUBNORMAL,
                        std::isfinite(v) && v != 0 && negative,
                        std::isnan(v) && !quiet};
    for (int category = 0; category < 8; ++category) {
      if (in(categories, category) && is[category]) return true;
    }
    return false;
  });
}

// bfloat16: subnormal numbers count as zero and become zero, whatever the control register says.
inline float flushed(float v) {
  return std::fpclassify(v) == FP_SUBNORMAL ? std::copysign(0.0f, v) : v;
}
inline float from_bfloat16(uint16_t bits) {
  return flushed(std::bit_cast<float>(uint32_t{bits} << 16));
}
inline uint16_t to_bfloat16(float v) {
  const uint32_t bits = std::bit_cast<uint32_t>(flushed(v));
  if (std::isnan(v)) return static_cast<uint16_t>(bits >> 16 | 0x40);
  return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}
// The lower half is of b, the upper one of a.
inline __m512bh pairs_of(__m512 a, __m512 b) {
  return cast<__m512bh>(
      lanes<U16x32>(kAll, [&](int i) { return to_bfloat16(i < 16 ? b[i] : a[i - 16]); }));
}
// The odd terms first, each rounded.
inline __m512 add_products_of_pairs(__m512 c, __m512bh a, __m512bh b) {
  const U16x32 x = cast<U16x32>(a), y = cast<U16x32>(b);
  return lanes<__m512>(kAll, [&](int i) {
    float sum = flushed(c[i]);
    sum = flushed(std::fma(from_bfloat16(x[2 * i + 1]), from_bfloat16(y[2 * i + 1]), sum));
    return flushed(std::fma(from_bfloat16(x[2 * i]), from_bfloat16(y[2 * i]), sum));
  });
}

}  // namespace avx512_emulation

#define _mm512_setzero_ps() (__m512{})
#define _mm512_setzero_pd() (__m512d{})
#define _mm512_set1_ps(a) avx512_emulation::repeat<__m512>(a)
#define _mm512_set1_pd(a) avx512_emulation::repeat<__m512d>(a)
#define _mm512_set1_epi32(a) \
  avx512_emulation::cast<__m512i>(avx512_emulation::repeat<avx512_emulation::U32x16>(a))
#undef _mm512_setr_epi32
#undef _mm512_setr_epi64
#define _mm512_setr_epi32(...) avx512_emulation::numbers<avx512_emulation::U32x16>(__VA_ARGS__)
#define _mm512_setr_epi64(...) avx512_emulation::numbers<avx512_emulation::U64x8>(__VA_ARGS__)

#define _mm512_castps_pd(a) avx512_emulation::cast<__m512d>(a)
#define _mm512_castpd_ps(a) avx512_emulation::cast<__m512>(a)
#define _mm512_castps_si512(a) avx512_emulation::cast<__m512i>(a)
#define _mm512_castsi512_ps(a) avx512_emulation::cast<__m512>(a)
#define _mm512_cvtss_f32(a) avx512_emulation::first(a)
#define _mm512_cvtsd_f64(a) avx512_emulation::first(a)

#define _mm512_loadu_ps(p) avx512_emulation::load<__m512>(p)
#define _mm512_loadu_pd(p) avx512_emulation::load<__m512d>(p)
#define _mm512_loadu_si512(p) avx512_emulation::load<__m512i>(p)
#define _mm512_maskz_loadu_ps(mask, p) avx512_emulation::load<__m512>(p, mask)
#define _mm512_maskz_loadu_pd(mask, p) avx512_emulation::load<__m512d>(p, mask)
#define _mm512_maskz_loadu_epi32(mask, p) \
  avx512_emulation::cast<__m512i>(avx512_emulation::load<avx512_emulation::U32x16>(p, mask))
#define _mm256_maskz_loadu_epi16(mask, p) \
  avx512_emulation::cast<__m256i>(avx512_emulation::load<avx512_emulation::U16x16>(p, mask))
#define _mm512_storeu_ps(p, a) avx512_emulation::store(p, a)
#define _mm512_storeu_pd(p, a) avx512_emulation::store(p, a)
#define _mm512_storeu_si512(p, a) avx512_emulation::store(p, a)
#define _mm512_mask_storeu_ps(p, mask, a) avx512_emulation::store(p, a, mask)
#define _mm512_mask_storeu_pd(p, mask, a) avx512_emulation::store(p, a, mask)
#define _mm512_mask_storeu_epi32(p, mask, a) \
  avx512_emulation::store(p, avx512_emulation::cast<avx512_emulation::U32x16>(a), mask)
#define _mm256_mask_storeu_epi16(p, mask, a) \
  avx512_emulation::store(p, avx512_emulation::cast<avx512_emulation::U16x16>(a), mask)

#define _mm512_add_ps(a, b) avx512_emulation::add(a, b)
#define _mm512_add_pd(a, b) avx512_emulation::add(a, b)
#define _mm512_mul_ps(a, b) avx512_emulation::multiply(a, b)
#define _mm512_mul_pd(a, b) avx512_emulation::multiply(a, b)
#define _mm512_fmadd_ps(a, b, c) avx512_emulation::fused_multiply_add(a, b, c)
#define _mm512_fmadd_pd(a, b, c) avx512_emulation::fused_multiply_add(a, b, c)

#define _mm512_maskz_mov_ps(mask, a) avx512_emulation::move(mask, a)
#define _mm512_maskz_mov_pd(mask, a) avx512_emulation::move(mask, a)
#define _mm512_maskz_permute_ps(mask, a, control) avx512_emulation::permute(mask, a, control)
#define _mm512_maskz_permute_pd(mask, a, control) avx512_emulation::permute(mask, a, control)
#define _mm512_maskz_unpacklo_ps(mask, a, b) avx512_emulation::unpack(mask, a, b, false)
#define _mm512_maskz_unpackhi_ps(mask, a, b) avx512_emulation::unpack(mask, a, b, true)
#define _mm512_maskz_unpacklo_pd(mask, a, b) avx512_emulation::unpack(mask, a, b, false)
#define _mm512_maskz_unpackhi_pd(mask, a, b) avx512_emulation::unpack(mask, a, b, true)
#define _mm512_maskz_shuffle_f32x4(mask, a, b, control) \
  avx512_emulation::shuffle_quarters(mask, a, b, control)
#define _mm512_maskz_shuffle_f64x2(mask, a, b, control) \
  avx512_emulation::shuffle_quarters(mask, a, b, control)
#define _mm512_permutex2var_ps(a, index, b) \
  avx512_emulation::permute_two(a, avx512_emulation::cast<avx512_emulation::U32x16>(index), b)
#define _mm512_permutex2var_pd(a, index, b) \
  avx512_emulation::permute_two(a, avx512_emulation::cast<avx512_emulation::U64x8>(index), b)
#define _mm512_maskz_permutexvar_epi16(mask, index, a) avx512_emulation::permute_16(mask, index, a)
#define _mm512_maskz_extractf32x8_ps(mask, a, which) avx512_emulation::half(mask, a, which)

#define _mm512_maskz_cvtepu16_epi32(mask, a) avx512_emulation::widen_16(mask, a)
#define _mm512_maskz_cvtepi32_epi16(mask, a) avx512_emulation::narrow_32(mask, a)
#define _mm512_maskz_slli_epi32(mask, a, by) avx512_emulation::shift_left(mask, a, by)
#define _mm512_maskz_srli_epi32(mask, a, by) avx512_emulation::shift_right(mask, a, by)
#define _mm512_add_epi32(a, b) avx512_emulation::add_32(a, b)
#define _mm512_and_si512(a, b) avx512_emulation::bits_and(a, b)
#define _mm512_or_si512(a, b) avx512_emulation::bits_or(a, b)
#define _mm512_mask_mov_epi32(other, mask, a) avx512_emulation::blend_32(other, mask, a)
#define _mm512_maskz_cvtph_ps(mask, a) avx512_emulation::from_half(mask, a)
#define _mm512_maskz_cvtps_ph(mask, a, rounding) avx512_emulation::to_half<rounding>(mask, a)

#define _mm512_cmp_ps_mask(a, b, predicate) avx512_emulation::compare<predicate>(a, b)
#define _mm512_fpclass_ps_mask(a, categories) avx512_emulation::classes(a, categories)
#define _mm512_cvtne2ps_pbh(a, b) avx512_emulation::pairs_of(a, b)
#define _mm512_dpbf16_ps(c, a, b) avx512_emulation::add_products_of_pairs(c, a, b)
