// Vec in 16-byte compiler vectors: SSE2 on x86-64, NEON on AArch64, plain code elsewhere.
#pragma once

#include "vec.h"

namespace matcalc::cpu {
namespace {

#if defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

// The raw register of Vec<T>.
typedef float Float4 __attribute__((vector_size(16)));
typedef double Double2 __attribute__((vector_size(16)));

template <>
struct Vec<float> {
  static constexpr int kWidth = 4;
  Float4 v;

  static inline Vec zero() { return {Float4{}}; }
  static inline Vec set1(float t) { return {Float4{t, t, t, t}}; }
  static inline Vec load(const float* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(r.v));
    return r;
  }
  template <class T>  // Bf16, F16
  static inline Vec load(const T* p) {
    return {Float4{widen(p[0]), widen(p[1]), widen(p[2]), widen(p[3])}};
  }
  template <class T>
  static inline Vec load(const T* p, int64_t n) {
    Vec r = zero();
    if (n > 0) r.v[0] = widen(p[0]);
    if (n > 1) r.v[1] = widen(p[1]);
    if (n > 2) r.v[2] = widen(p[2]);
    if (n > 3) r.v[3] = widen(p[3]);
    return r;
  }
  inline Vec first(int64_t n) const {
    Vec r = *this;
    for (int i = 0; i < kWidth; ++i) {
      if (i >= n) r.v[i] = 0;
    }
    return r;
  }
  inline void store(float* p) const { std::memcpy(p, &v, sizeof(v)); }
  template <class T>
  inline void store(T* p) const {
    for (int i = 0; i < kWidth; ++i) narrow(v[i], p[i]);
  }
  template <class T>
  inline void store(T* p, int64_t n) const {
    for (int i = 0; i < kWidth; ++i) {
      if (i < n) narrow(v[i], p[i]);
    }
  }
};

template <>
struct Vec<double> {
  static constexpr int kWidth = 2;
  Double2 v;

  static inline Vec zero() { return {Double2{}}; }
  static inline Vec set1(double t) { return {Double2{t, t}}; }
  static inline Vec load(const double* p) {
    Vec r;
    std::memcpy(&r.v, p, sizeof(r.v));
    return r;
  }
  static inline Vec load(const double* p, int64_t n) {
    if (n > 1) return load(p);
    Vec r = zero();
    if (n > 0) std::memcpy(&r.v, p, sizeof(double));  // in whose place a complex number may be
    return r;
  }
  inline Vec first(int64_t n) const {
    Vec r = *this;
    if (n < 1) r.v[0] = 0;
    if (n < 2) r.v[1] = 0;
    return r;
  }
  inline void store(double* p) const { std::memcpy(p, &v, sizeof(v)); }
  inline void store(double* p, int64_t n) const {
    if (n > 1) {
      store(p);
    } else if (n > 0) {
      std::memcpy(p, &v, sizeof(double));
    }
  }
};

inline Vec<float> operator+(Vec<float> a, Vec<float> b) { return {a.v + b.v}; }
inline Vec<float> operator*(Vec<float> a, Vec<float> b) { return {a.v * b.v}; }
// Rounds twice where the baseline has no fused multiply-add.
inline Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) { return {a.v * b.v + c.v}; }
inline float reduce_add(Vec<float> a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }

inline void interleave(Vec<float> a, Vec<float> b, Vec<float>& low, Vec<float>& high) {
  low = {Float4{a.v[0], b.v[0], a.v[1], b.v[1]}};
  high = {Float4{a.v[2], b.v[2], a.v[3], b.v[3]}};
}
inline void interleave(Vec<double> a, Vec<double> b, Vec<double>& low, Vec<double>& high) {
  low = {Double2{a.v[0], b.v[0]}};
  high = {Double2{a.v[1], b.v[1]}};
}
inline Vec<float> swap_pairs(Vec<float> a) { return {Float4{a.v[1], a.v[0], a.v[3], a.v[2]}}; }
inline Vec<double> swap_pairs(Vec<double> a) { return {Double2{a.v[1], a.v[0]}}; }

inline Vec<double> operator+(Vec<double> a, Vec<double> b) { return {a.v + b.v}; }
inline Vec<double> operator*(Vec<double> a, Vec<double> b) { return {a.v * b.v}; }
inline Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) { return {a.v * b.v + c.v}; }
inline double reduce_add(Vec<double> a) { return a.v[0] + a.v[1]; }

}  // namespace
}  // namespace matcalc::cpu
