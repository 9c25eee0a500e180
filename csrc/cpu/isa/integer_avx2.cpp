// The integer kernels for AVX2.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>

#include "integer_kernels.h"

namespace matcalc::cpu {
namespace {

// 12 accumulators + 2 for B + 1 broadcast + 1 product are 16 registers.
constexpr int kVectorBytes = 32;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

#include "integer_kernels.inc"

}  // namespace

const IntegerKernelTable& integer_kernels_avx2() { return kIntegerKernels; }

}  // namespace matcalc::cpu

#endif
