// The loops of the machine's limits for any processor: 16-byte vectors.
#include "vec_scalar.h"

// After the vectors that it is written in.
#include "roof_kernels.inc"

namespace matcalc::cpu {

const RoofKernels& roof_kernels_scalar() { return kRoofKernels; }

}  // namespace matcalc::cpu
