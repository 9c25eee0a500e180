// What the micro-kernels are written in: Vec<float> and Vec<double>, one register each, defined
// per instruction set by vec_scalar.h, vec_avx2.h and vec_avx512.h, of which a translation unit
// includes exactly one:
//
//   Vec<T>::kWidth                    elements in a register
//   kVectorRegisters                  how many of them there are
//   Vec<T>::zero(), Vec<T>::set1(t)
//   Vec<T>::load(p)                   kWidth elements at p, of any alignment
//   Vec<T>::load(p, n)                the first n <= kWidth, then zeros; reads nothing past them
//   v.store(p), v.store(p, n)         the same way
//   v.first(n)                        v with every lane from the n-th on set to zero
//   a + b, a * b, fma(a, b, c) = a * b + c, reduce_add(v)
//   interleave(a, b, low, high)       low = a0 b0 a1 b1 ..., of the first halves; high of the
//   second
//   swap_pairs(v)                     v1 v0 v3 v2 ...
//
// T = float also loads and stores Bf16 and F16: widened exactly, rounded to nearest even; a NaN
// stays a NaN.
//
// Everything is in an unnamed namespace: a copy compiled with wider flags than the rest of the
// library must never be the one that the linker keeps for all.
#pragma once

#include <cstdint>
#include <cstring>

#include "../../numbers.h"

namespace matcalc::cpu {
namespace {

template <class T>
struct Vec;

// even odd even odd ...
template <class T>
inline Vec<T> alternate(T even, T odd) {
  Vec<T> low, high;
  interleave(Vec<T>::set1(even), Vec<T>::set1(odd), low, high);
  return low;
}

}  // namespace
}  // namespace matcalc::cpu
