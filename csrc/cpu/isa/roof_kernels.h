// What the machine can do at best, per instruction set: the loops that csrc/cpu/roof.cpp times.
#pragma once

#include <cstdint>

namespace matcalc::cpu {

// Arithmetic on registers alone: `run` does `flops` operations per step. Its result is of no use,
// but without one the compiler would leave the work out.
struct RoofArithmetic {
  int64_t flops;
  double (*run)(int64_t steps);
};

struct RoofKernels {
  RoofArithmetic float32, float64;
  float (*read)(const float* from, int64_t n);  // [n]; the sum
};

const RoofKernels& roof_kernels_scalar();
#if defined(__x86_64__)
const RoofKernels& roof_kernels_avx2();
const RoofKernels& roof_kernels_avx512();
const RoofArithmetic& roof_pairs_avx512bf16();  // dot products of pairs of bfloat16 numbers
const RoofArithmetic& roof_tiles_amxbf16();     // products of tiles of them
#endif

}  // namespace matcalc::cpu
