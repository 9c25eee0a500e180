// The integer kernels for AVX-512.
#if defined(__x86_64__)
#include <cstdint>
#include <cstring>

#include "integer_kernels.h"

namespace matcalc::cpu {
namespace {

// 24 accumulators + 3 for B + 1 broadcast + 1 product <= 32 zmm.
constexpr int kVectorBytes = 64;
constexpr int kTileRows = 8;
constexpr int kTileVectors = 3;

#include "integer_kernels.inc"

}  // namespace

const IntegerKernelTable& integer_kernels_avx512() { return kIntegerKernels; }

}  // namespace matcalc::cpu

#endif
