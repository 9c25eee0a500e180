// The integer kernels for any processor: 16-byte vectors.

#include <cstdint>
#include <cstring>

#include "integer_kernels.h"

namespace matcalc::cpu {
namespace {

// 12 accumulators + 2 for B + 1 broadcast + 1 product are 16 registers.
constexpr int kVectorBytes = 16;
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

#include "integer_kernels.inc"

}  // namespace

const IntegerKernelTable& integer_kernels_scalar() { return kIntegerKernels; }

}  // namespace matcalc::cpu
