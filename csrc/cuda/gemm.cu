#include "gemm.cuh"

namespace matcalc::cuda {

Gemm make_gemm(const Contraction& op, bool bias_on_rows, const Device& device,
               Workspace& workspace) {
  using Dim = ContractionDim;
  const auto offsets = [&](const DimList<Dim>& dims, int64_t Dim::* stride) {
    return make_offsets(dims, stride, device, workspace);
  };
  Gemm gemm{};
  gemm.dtype = op.dtype;
  gemm.dtype_a = op.dtype_a;
  gemm.dtype_b = op.dtype_b;
  gemm.dtype_c = op.dtype_c;
  gemm.a = op.a;
  gemm.s = op.s;
  gemm.b = op.b;
  gemm.bias = op.bias;
  gemm.c = op.c;
  gemm.items = op.batch.numel();
  gemm.m = op.m.numel();
  gemm.n = op.n.numel();
  gemm.k = op.k.numel();
  gemm.batch_a = offsets(op.batch, &Dim::a);
  gemm.batch_b = offsets(op.batch, &Dim::b);
  gemm.batch_c = offsets(op.batch, &Dim::c);
  gemm.m_a = offsets(op.m, &Dim::a);
  gemm.m_c = offsets(op.m, &Dim::c);
  gemm.n_b = offsets(op.n, &Dim::b);
  gemm.n_c = offsets(op.n, &Dim::c);
  gemm.k_a = offsets(op.k, &Dim::a);
  gemm.k_b = offsets(op.k, &Dim::b);
  if (op.s != nullptr) {
    gemm.batch_s = offsets(op.batch, &Dim::s);
    gemm.m_s = offsets(op.m, &Dim::s);
    gemm.k_s = offsets(op.k, &Dim::s);
  }
  if (op.fold != Fold::kNone) {
    gemm.n_b2 = offsets(op.n, &Dim::b2);
    gemm.k_b2 = offsets(op.k, &Dim::b2);
    gemm.fold_n = op.n[op.n.count - 1].size;
    gemm.fold_k = op.k[op.k.count - 1].size;
  }
  gemm.bias_stride = op.bias_stride;
  gemm.bias_on_rows = bias_on_rows;
  gemm.conj_a = op.conj_a;
  gemm.conj_s = op.conj_s;
  gemm.conj_b = op.conj_b;
  gemm.fold = op.fold;
  gemm.scale = op.scale;
  return gemm;
}

}  // namespace matcalc::cuda
