#include "mma.cuh"

namespace matcalc::cuda {

template void launch_mma<float>(const MmaProblem& problem, const MmaVariant& variant,
                                const Device& device);

}  // namespace matcalc::cuda
