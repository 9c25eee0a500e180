// The loops of the machine's limits for AVX2 and FMA.
#if defined(__x86_64__)
#include "vec_avx2.h"

// After the vectors that it is written in.
#include "roof_kernels.inc"

namespace matcalc::cpu {

const RoofKernels& roof_kernels_avx2() { return kRoofKernels; }

}  // namespace matcalc::cpu
#endif
