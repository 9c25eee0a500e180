// The numbers that the kernels compute with: complex ones, and for every stored type T (double,
// float, Bf16, F16, Complex, the integers) its Accumulator<T> with widen() and narrow().
#pragma once

#include <cmath>
#include <cstdint>
#include <type_traits>

#include "../kernels.h"
#include "../numbers.h"
#include "platform.cuh"

namespace matcalc {

// As torch and std::complex store it. The alignment lets a number be read in one piece.
template <class R>
struct alignas(2 * sizeof(R)) Complex {
  R re, im;
};

// Whole numbers are summed modulo 2^bits, as torch does; unsigned, so that wrapping is defined.
template <>
struct AccumulatorOf<uint8_t> {
  using Type = uint32_t;
};
template <>
struct AccumulatorOf<int8_t> {
  using Type = uint32_t;
};
template <>
struct AccumulatorOf<int16_t> {
  using Type = uint32_t;
};
template <>
struct AccumulatorOf<int32_t> {
  using Type = uint32_t;
};
template <>
struct AccumulatorOf<int64_t> {
  using Type = uint64_t;
};

namespace cuda {

using matcalc::narrow;
using matcalc::widen;

template <class T>
inline constexpr bool kIsComplex = false;
template <class R>
inline constexpr bool kIsComplex<Complex<R>> = true;

template <class R>
MATCALC_HD inline Complex<R> widen(Complex<R> value) {
  return value;
}
template <class R>
MATCALC_HD inline void narrow(Complex<R> value, Complex<R>& out) {
  out = value;
}
MATCALC_HD inline uint32_t widen(uint8_t value) { return value; }
MATCALC_HD inline uint32_t widen(int8_t value) { return static_cast<uint32_t>(value); }
MATCALC_HD inline uint32_t widen(int16_t value) { return static_cast<uint32_t>(value); }
MATCALC_HD inline uint32_t widen(int32_t value) { return static_cast<uint32_t>(value); }
MATCALC_HD inline uint64_t widen(int64_t value) { return static_cast<uint64_t>(value); }
template <class Whole, class T>
  requires std::is_integral_v<Whole> && std::is_integral_v<T>
MATCALC_HD inline void narrow(Whole value, T& out) {
  out = static_cast<T>(value);
}

// Arithmetic on accumulators, by one name for every kind.
template <class Acc>
MATCALC_HD inline Acc add(Acc a, Acc b) {
  return a + b;
}
template <class R>
MATCALC_HD inline Complex<R> add(Complex<R> a, Complex<R> b) {
  return {a.re + b.re, a.im + b.im};
}
template <class Acc>
MATCALC_HD inline Acc multiply(Acc a, Acc b) {
  return a * b;
}
template <class R>
MATCALC_HD inline Complex<R> multiply(Complex<R> a, Complex<R> b) {
  return {a.re * b.re - a.im * b.im, a.re * b.im + a.im * b.re};
}
template <class Acc>
MATCALC_HD inline Acc multiply_add(Acc a, Acc b, Acc sum) {
  return a * b + sum;  // contracted to one fused operation on the device
}
template <class R>
MATCALC_HD inline Complex<R> multiply_add(Complex<R> a, Complex<R> b, Complex<R> sum) {
  sum.re = sum.re + a.re * b.re;
  sum.re = sum.re - a.im * b.im;
  sum.im = sum.im + a.re * b.im;
  sum.im = sum.im + a.im * b.re;
  return sum;
}
template <class Acc>
MATCALC_HD inline Acc conjugate_if(bool wanted, Acc value) {
  if constexpr (kIsComplex<Acc>) {
    return {value.re, wanted ? -value.im : value.im};
  } else {
    return value;
  }
}
template <class Acc>
MATCALC_HD inline Acc scaled(Acc value, double factor) {
  if constexpr (kIsComplex<Acc>) {
    using R = decltype(value.re);
    return {value.re * static_cast<R>(factor), value.im * static_cast<R>(factor)};
  } else {
    return value * static_cast<Acc>(factor);
  }
}
template <class Acc>
MATCALC_HD inline Acc one() {
  if constexpr (kIsComplex<Acc>) {
    return {1, 0};
  } else {
    return Acc{1};
  }
}

// To the nearest number with 11 bits of precision, ties away from zero, as a tensor core reads it:
// it does not look at the 13 bits below. cvt.rna.tf32.f32 clears them, of a NaN that has no others
// too, which makes it an infinity; a sum has the first bit of the mantissa set.
MATCALC_HD inline uint32_t round_to_tf32(float value) {
  constexpr uint32_t kInfinity = 0x7f800000, kHalf = 0x1000;
  const uint32_t bits = bits_of(value);
  return fabsf(value) < float_of(kInfinity) ? bits + kHalf : bits_of(value + value);
}

// Calls body(T*{}) with the stored type of a dtype: the one switch over dtypes on this side.
template <class F>
void with_dtype(Dtype dtype, F&& body) {
  switch (dtype) {
    case Dtype::kFloat64:
      return body(static_cast<double*>(nullptr));
    case Dtype::kFloat32:
      return body(static_cast<float*>(nullptr));
    case Dtype::kBFloat16:
      return body(static_cast<Bf16*>(nullptr));
    case Dtype::kFloat16:
      return body(static_cast<F16*>(nullptr));
    case Dtype::kComplex64:
      return body(static_cast<Complex<float>*>(nullptr));
    case Dtype::kComplex128:
      return body(static_cast<Complex<double>*>(nullptr));
    case Dtype::kUInt8:
      return body(static_cast<uint8_t*>(nullptr));
    case Dtype::kInt8:
      return body(static_cast<int8_t*>(nullptr));
    case Dtype::kInt16:
      return body(static_cast<int16_t*>(nullptr));
    case Dtype::kInt32:
      return body(static_cast<int32_t*>(nullptr));
    case Dtype::kInt64:
      return body(static_cast<int64_t*>(nullptr));
  }
}

// The value of the lane whose number differs by the bits of `with`.
template <class Acc>
__device__ __forceinline__ Acc shuffle_xor(Acc value, int with) {
  if constexpr (kIsComplex<Acc>) {
    return {__shfl_xor_sync(0xffffffffu, value.re, with),
            __shfl_xor_sync(0xffffffffu, value.im, with)};
  } else {
    return __shfl_xor_sync(0xffffffffu, value, with);
  }
}

}  // namespace cuda
}  // namespace matcalc
