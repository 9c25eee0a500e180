#include "wgmma.cuh"

namespace matcalc::cuda {

template void launch_wgmma<Bf16, 128>(const WgmmaProblem&, Major, Major, const Device&);
template void launch_wgmma<Bf16, 256>(const WgmmaProblem&, Major, Major, const Device&);

}  // namespace matcalc::cuda
