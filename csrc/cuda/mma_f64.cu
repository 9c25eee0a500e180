#include "mma.cuh"

namespace matcalc::cuda {

template void launch_mma<double>(const MmaProblem& problem, const MmaVariant& variant,
                                 const Device& device);

}  // namespace matcalc::cuda
