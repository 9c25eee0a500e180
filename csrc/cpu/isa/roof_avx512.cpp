// The loops of the machine's limits for AVX-512.
#if defined(__x86_64__)
#include "vec_avx512.h"

// After the vectors that it is written in.
#include "roof_kernels.inc"

namespace matcalc::cpu {

const RoofKernels& roof_kernels_avx512() { return kRoofKernels; }

}  // namespace matcalc::cpu
#endif
