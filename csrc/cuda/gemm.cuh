// A contraction as the kernels read it, passed to them by value, and the paths that compute it.
#pragma once

#include "index.cuh"

namespace matcalc::cuda {

//   C[item, i, j] = bias[j] + scale * sum_p  A[item, i, p] * S[item, i, p] * B[item, p, j]
struct Gemm {
  Dtype dtype, dtype_a, dtype_b, dtype_c;
  const void* a;  // nullptr: 1 everywhere (then s is nullptr too)
  const void* s;  // nullptr: none
  const void* b;
  const void* bias;  // nullptr: none; of `dtype`, bias_stride apart along j, or along i
  void* c;
  int64_t items, m, n, k;
  Offsets batch_a, batch_s, batch_b, batch_c;
  Offsets m_a, m_s, m_c;
  Offsets n_b, n_b2, n_c;
  Offsets k_a, k_s, k_b, k_b2;
  int64_t bias_stride;
  bool bias_on_rows;
  bool conj_a, conj_s, conj_b;
  Fold fold;  // see kernels.h: row j % fold_n and column p % fold_k of the square matrix
  int64_t fold_n, fold_k;
  double scale;
};

Gemm make_gemm(const Contraction& op, bool bias_on_rows, const Device& device,
               Workspace& workspace);

// The paths, from the most special to the most general. Each computes the product and returns
// true, or does nothing and returns false.
bool run_level2(const Gemm& gemm, const Device& device, Workspace& workspace);
bool run_wgmma(const Gemm& gemm, const Device& device, Workspace& workspace);
bool run_mma(const Gemm& gemm, const Device& device, Workspace& workspace);
void run_simt(const Gemm& gemm, const Device& device, Workspace& workspace);  // takes everything

// C = bias + scale * the sum in ascending order of `splits` partial sums over parts of the depth,
// partial[split, item, i, j], contiguous, of the accumulator's type: the second stage of split-K.
void add_splits(const Gemm& gemm, const Device& device, const void* partial, int64_t splits);

}  // namespace matcalc::cuda
