// The level-2 kernels for the target's baseline.
#include "vec_scalar.h"

// After the vectors that it is written in.
#include "form_kernels.inc"

namespace matcalc::cpu {

const FormKernels& form_kernels_scalar() { return kFormKernels; }

}  // namespace matcalc::cpu
