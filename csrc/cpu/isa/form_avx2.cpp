// The level-2 kernels for AVX2, FMA and F16C.
#if defined(__x86_64__)
#include "vec_avx2.h"

// After the vectors that it is written in.
#include "form_kernels.inc"

namespace matcalc::cpu {

const FormKernels& form_kernels_avx2() { return kFormKernels; }

}  // namespace matcalc::cpu
#endif
