// The contraction's entry: which way round the product is computed, and by which path.
//
//   level2   a matrix times a vector, dots, sums, outer products: memory traffic
//   wgmma    bf16 and f16 on Hopper's warpgroup tensor cores
//   mma      bf16, f16, TF32 and f64 on the tensor cores of Ampere and later
//   simt     everything else, on the ordinary arithmetic units
#include "../offsets.h"
#include "gemm.cuh"

namespace matcalc::cuda {
namespace {

// The kernels write rows of C: its contiguous direction should be n. Only the factor A can be
// generated from two, and only B be a folded matrix.
bool wants_transpose(const Contraction& op) {
  if (op.a == nullptr || op.s != nullptr || op.fold != Fold::kNone) return false;
  const int64_t m_c = uniform_step(op.m, &ContractionDim::c, kNoStep);
  const int64_t n_c = uniform_step(op.n, &ContractionDim::c, kNoStep);
  return op.n.numel() != 1 && n_c != 1 && m_c == 1 && op.m.numel() != 1;
}

void run(const Contraction& op, bool bias_on_rows) {
  const Device device(op.device);
  Workspace workspace(device);
  const Gemm gemm = make_gemm(op, bias_on_rows, device, workspace);
  if (run_level2(gemm, device, workspace)) return;
#if !defined(MATCALC_NO_WGMMA)  // a build for GPUs among which there is no Hopper
  if (run_wgmma(gemm, device, workspace)) return;
#endif
  if (run_mma(gemm, device, workspace)) return;
  run_simt(gemm, device, workspace);
}

}  // namespace

void contract(const Contraction& op) {
  if (wants_transpose(op)) {
    Contraction transposed = op;
    transpose(transposed);
    run(transposed, true);
  } else {
    run(op, false);
  }
}

}  // namespace matcalc::cuda
