// The level-2 kernels for AVX-512 F, BW, VL and DQ.
#if defined(__x86_64__)
#include "vec_avx512.h"

// After the vectors that it is written in.
#include "form_kernels.inc"

namespace matcalc::cpu {

const FormKernels& form_kernels_avx512() { return kFormKernels; }

}  // namespace matcalc::cpu
#endif
