#include "mma.cuh"

namespace matcalc::cuda {

template void launch_mma<F16>(const MmaProblem& problem, const MmaVariant& variant,
                              const Device& device);

}  // namespace matcalc::cuda
