// The 16-bit numbers, the type that a sum is kept in, and the way from one to the other.
//
// The functions are in an unnamed namespace: a copy compiled with wider flags than the rest of the
// library must never be the one that the linker keeps for all.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#define MATCALC_HD __host__ __device__
#else
#define MATCALC_HD
#endif

namespace matcalc {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

// The type that a sum of Ts is kept in.
template <class T>
struct AccumulatorOf {
  using Type = T;
};
template <>
struct AccumulatorOf<Bf16> {
  using Type = float;
};
template <>
struct AccumulatorOf<F16> {
  using Type = float;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::Type;

namespace {

MATCALC_HD inline uint32_t bits_of(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof(bits));
  return bits;
}
MATCALC_HD inline float float_of(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof(value));
  return value;
}

// One element to its accumulator type and back.
MATCALC_HD inline float widen(float value) { return value; }
MATCALC_HD inline double widen(double value) { return value; }
MATCALC_HD inline float widen(Bf16 value) {
  return float_of(static_cast<uint32_t>(value.bits) << 16);
}
MATCALC_HD inline float widen(F16 value) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
#else
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000) << 16;
  const uint32_t rest = static_cast<uint32_t>(value.bits & 0x7fff) << 13;
  const uint32_t exponent = rest & 0x0f800000;
  // Exponents are 127 - 15 apart; infinity and NaN take the gap twice. A subnormal is read as a
  // number with exponent 113, from which the implicit one that it does not have is taken off.
  const uint32_t normal = rest + (exponent == 0x0f800000 ? 0x70000000u : 0x38000000u);
  const float subnormal = float_of(rest + 0x38800000u) - float_of(0x38800000u);
  return float_of((exponent == 0 ? bits_of(subnormal) : normal) | sign);
#endif
}

MATCALC_HD inline void narrow(float value, float& out) { out = value; }
MATCALC_HD inline void narrow(double value, double& out) { out = value; }
MATCALC_HD inline void narrow(float value, Bf16& out) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#else
  const uint32_t bits = bits_of(value);
  const uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  out.bits = static_cast<uint16_t>((bits & 0x7fffffff) > 0x7f800000 ? 0x7fc0 : rounded);
#endif
}
MATCALC_HD inline void narrow(float value, F16& out) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(value));
#else
  const uint32_t bits = bits_of(value);
  const uint32_t sign = bits & 0x80000000;
  const uint32_t magnitude = bits ^ sign;
  // Below 2^-14: adding 2^-1 makes the float adder round at the half's last subnormal bit.
  const uint32_t subnormal = bits_of(float_of(magnitude) + 0.5f) - bits_of(0.5f);
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  const uint32_t special = magnitude > 0x7f800000 ? 0x7e00 : 0x7c00;
  const uint32_t half = magnitude >= 0x47800000  ? special  // 65536 and above
                        : magnitude < 0x38800000 ? subnormal
                                                 : normal;
  out.bits = static_cast<uint16_t>(half | (sign >> 16));
#endif
}

}  // namespace
}  // namespace matcalc
