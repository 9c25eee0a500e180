#include "wgmma.cuh"

namespace matcalc::cuda {

template void launch_wgmma<F16, 128>(const WgmmaProblem&, Major, Major, const Device&);
template void launch_wgmma<F16, 256>(const WgmmaProblem&, Major, Major, const Device&);

}  // namespace matcalc::cuda
