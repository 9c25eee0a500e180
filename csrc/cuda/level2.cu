// Which products are memory traffic: those with a matrix and no more than vectors beside it.
#include "level2.cuh"

namespace matcalc::cuda {

bool run_level2(const Gemm& gemm, const Device& device, Workspace& workspace) {
  if (is_integer(gemm.dtype) || gemm.fold != Fold::kNone) return false;
  if (gemm.k <= 1) return run_outer(gemm, device);
  return gemm.s == nullptr && run_gemv(gemm, device, workspace);
}

}  // namespace matcalc::cuda
