#include "contraction.h"
#include "form.h"
#include "ops.h"

namespace matcalc {
namespace {

// x is (..., n), A is (..., n, n); the batch dimensions broadcast.
Dims quadratic_batch(const char* op, const Operand& x, const Operand& A) {
  check_min_dim(op, x, 1);
  check_min_dim(op, A, 2);
  if (A.size(2) != A.size(1)) {
    fail(op, ": A has ", A.size(2), " rows and ", A.size(1), " columns, expected a square matrix");
  }
  if (x.size(1) != A.size(1)) {
    fail(op, ": x has ", x.size(1), " entries in its last dimension, A has ", A.size(1),
         " rows and columns");
  }
  return broadcast_batch(op, {{&x, 1}, {&A, 2}});
}

}  // namespace

// alpha[...] = sum_ij x[..., i] A[..., i, j] x[..., j]; symmetric: reads A[..., i, j] for i >= j
Tensor quadratic(const Tensor& x_tensor, const Tensor& A_tensor, bool symmetric) {
  const char* op = "quadratic";
  const Operand x(op, "x", x_tensor), A(op, "A", A_tensor);
  const Call call = check_operands(op, {&x, &A});
  const Dims batch = quadratic_batch(op, x, A);
  Result alpha = call.empty(batch);
  if (alpha.numel == 0) return alpha.take();
  const int64_t n = A.size(1);
  if (n == 0) {
    fill_zeros(call, alpha);
    return alpha.take();
  }

  if (matrix_per_item(A, batch)) {
    Form form;
    set_form(form, call, x, A, x);
    form.quadratic = true;
    form.symmetric = symmetric;
    form.alpha = alpha.data;
    for (int64_t d = 0; d < batch.count; ++d) {
      if (batch.sizes[d] == 1) continue;
      const int64_t x_stride = batch_stride(x, 1, batch, d);
      form.batch.push({batch.sizes[d], x_stride, batch_stride(A, 2, batch, d), x_stride, 0,
                       alpha.strides[d], 0, 0});
    }
    finish_form(form);
    call.kernels->form(form);
    return alpha.take();
  }
  // T[..., j] = sum_i x[..., i] A[..., i, j] over the batch that x or A runs along, then
  // alpha[...] = sum_j T[..., j] x[..., j].
  Dims kept;
  for (int64_t d = 0; d < batch.count; ++d) {
    const bool runs = batch_stride(x, 1, batch, d) != 0 || batch_stride(A, 2, batch, d) != 0;
    kept.push(runs ? batch.sizes[d] : 1);
  }
  kept.push(n);
  const Result t = call.intermediate(kept);
  ContractionBuilder first(call, {x.data}, {}, {A.data}, t.data);
  ContractionBuilder second(call, {t.data}, {}, {x.data}, alpha.data);
  first.intermediate_c();
  second.intermediate_a();
  for (int64_t d = 0; d < batch.count; ++d) {
    const int64_t t_stride = kept.sizes[d] == 1 ? 0 : t.strides[d];
    const int64_t x_stride = batch_stride(x, 1, batch, d);
    first.add({kept.sizes[d], x_stride, 0, batch_stride(A, 2, batch, d), t_stride});
    second.add({batch.sizes[d], t_stride, 0, x_stride, alpha.strides[d]});
  }
  if (symmetric) {
    first.add_fold(Fold::kSymmetric, n, A.stride(2), A.stride(1), x.stride(1), 1);
  } else {
    first.add({n, 0, 0, A.stride(1), 1});
    first.add({n, x.stride(1), 0, A.stride(2), 0});
  }
  second.add({n, 1, 0, x.stride(1), 0});
  first.run();
  second.run();
  return alpha.take();
}

// dx[..., i] = g[...] sum_j conj((A[..., i, j] + A[..., j, i]) x[..., j]), symmetric: 2 g conj(A
// x); dA[..., i, j] = g[...] conj(x[..., i] x[..., j]); each summed over the batch dimensions along
// which its operand was broadcast.
Gradients2 quadratic_backward(const Tensor& grad, const Tensor& x_tensor, const Tensor& A_tensor,
                              bool symmetric, bool need_x, bool need_A) {
  const char* op = "quadratic_backward";
  const Operand g(op, "grad", grad), x(op, "x", x_tensor), A(op, "A", A_tensor);
  const Call call = check_operands(op, {&x, &A, &g});
  const Dims batch = quadratic_batch(op, x, A);
  check_grad_shape(op, g, batch);
  const int64_t n = A.size(1);

  Result dx = need_x ? call.empty_like(x) : Result();
  Result dA = need_A ? call.empty_like(A) : Result();
  if (dx.numel != 0) {
    if (matrix_per_item(A, batch) && !batch_reduced(x, 1, batch)) {
      Form form;
      set_form(form, call, x, A, x);
      form.quadratic = true;
      form.symmetric = symmetric;
      form.g = g.data;
      form.dx = dx.data;
      form.dx_stride = dx.stride(1);
      for (int64_t d = 0; d < batch.count; ++d) {
        if (batch.sizes[d] == 1) continue;
        const int64_t x_stride = batch_stride(x, 1, batch, d);
        form.batch.push({batch.sizes[d], x_stride, batch_stride(A, 2, batch, d), x_stride,
                         g.strides[d], 0, 0, batch_stride(dx, 1, batch, d)});
      }
      finish_form(form);
      call.kernels->form_gradients(form);
    } else {
      ContractionBuilder builder(call, {x.data, true}, {g.data}, {A.data, true}, dx.data);
      for (int64_t d = 0; d < batch.count; ++d) {
        builder.add({batch.sizes[d], batch_stride(x, 1, batch, d), g.strides[d],
                     batch_stride(A, 2, batch, d), batch_stride(dx, 1, batch, d)});
      }
      builder.add_fold(symmetric ? Fold::kSymmetric : Fold::kAddTranspose, n, A.stride(2),
                       A.stride(1), x.stride(1), 1);
      if (symmetric) builder.set_scale(2);
      builder.run();
    }
  }
  if (dA.numel != 0) {
    TripleProduct product({x.data, true}, {g.data}, {x.data, true}, dA.data);
    for (int64_t d = 0; d < batch.count; ++d) {
      const int64_t x_stride = batch_stride(x, 1, batch, d);
      product.add(
          {batch.sizes[d], x_stride, g.strides[d], x_stride, batch_stride(dA, 2, batch, d)});
    }
    product.add({n, x.stride(1), 0, 0, n});
    product.add({n, 0, 0, x.stride(1), 1});
    run(call, product, Fused::kAllowed);
  }
  return {take_if(need_x, dx), take_if(need_A, dA)};
}

}  // namespace matcalc
