#include "contraction.h"
#include "form.h"
#include "ops.h"

namespace matcalc {
namespace {

// y is (..., m), A is (..., m, n), x is (..., n); the batch dimensions broadcast.
Dims bilinear_batch(const char* op, const Operand& y, const Operand& A, const Operand& x) {
  check_min_dim(op, y, 1);
  check_min_dim(op, A, 2);
  check_min_dim(op, x, 1);
  if (y.size(1) != A.size(2)) {
    fail(op, ": y has ", y.size(1), " entries in its last dimension, A has ", A.size(2), " rows");
  }
  if (x.size(1) != A.size(1)) {
    fail(op, ": x has ", x.size(1), " entries in its last dimension, A has ", A.size(1),
         " columns");
  }
  return broadcast_batch(op, {{&y, 1}, {&A, 2}, {&x, 1}});
}

// The gradients that keep every batch dimension, of forms with a matrix per item.
void form_gradients(const Call& call, const Operand& g, const Operand& y, const Operand& A,
                    const Operand& x, const Dims& batch, const Result* dy, const Result* dx) {
  Form form;
  set_form(form, call, y, A, x);
  form.g = g.data;
  if (dy != nullptr) {
    form.dy = dy->data;
    form.dy_stride = dy->stride(1);
  }
  if (dx != nullptr) {
    form.dx = dx->data;
    form.dx_stride = dx->stride(1);
  }
  for (int64_t d = 0; d < batch.count; ++d) {
    if (batch.sizes[d] == 1) continue;
    form.batch.push({batch.sizes[d], batch_stride(y, 1, batch, d), batch_stride(A, 2, batch, d),
                     batch_stride(x, 1, batch, d), g.strides[d], 0,
                     dy != nullptr ? batch_stride(*dy, 1, batch, d) : 0,
                     dx != nullptr ? batch_stride(*dx, 1, batch, d) : 0});
  }
  finish_form(form);
  call.kernels->form_gradients(form);
}

}  // namespace

// alpha[...] = sum_ij y[..., i] A[..., i, j] x[..., j]
Tensor bilinear(const Tensor& y_tensor, const Tensor& A_tensor, const Tensor& x_tensor) {
  const char* op = "bilinear";
  const Operand y(op, "y", y_tensor), A(op, "A", A_tensor), x(op, "x", x_tensor);
  const Call call = check_operands(op, {&y, &A, &x});
  const Dims batch = bilinear_batch(op, y, A, x);
  Result alpha = call.empty(batch);
  if (alpha.numel == 0) return alpha.take();
  const int64_t m = A.size(2), n = A.size(1);
  if (m == 0 || n == 0) {
    fill_zeros(call, alpha);
    return alpha.take();
  }

  if (matrix_per_item(A, batch)) {
    Form form;
    set_form(form, call, y, A, x);
    form.alpha = alpha.data;
    for (int64_t d = 0; d < batch.count; ++d) {
      if (batch.sizes[d] == 1) continue;
      form.batch.push({batch.sizes[d], batch_stride(y, 1, batch, d), batch_stride(A, 2, batch, d),
                       batch_stride(x, 1, batch, d), 0, alpha.strides[d], 0, 0});
    }
    finish_form(form);
    call.kernels->form(form);
    return alpha.take();
  }
  // p = A x or q = A^T y over the batch that has them, then its product with the other vector:
  // nothing is expanded to the whole batch. The fused product would make every y_i x_j.
  TripleProduct product({x.data}, {y.data}, {A.data}, alpha.data);
  for (int64_t d = 0; d < batch.count; ++d) {
    product.add({batch.sizes[d], batch_stride(x, 1, batch, d), batch_stride(y, 1, batch, d),
                 batch_stride(A, 2, batch, d), alpha.strides[d]});
  }
  product.add({m, 0, y.stride(1), A.stride(2), 0});
  product.add({n, x.stride(1), 0, A.stride(1), 0});
  run(call, product, Fused::kNever);
  return alpha.take();
}

// dy[..., i] = g[...] sum_j conj(A[..., i, j] x[..., j]),  dx[..., j] = g[...] sum_i conj(A y),
// dA[..., i, j] = g[...] conj(y[..., i] x[..., j]), each summed over the batch dimensions along
// which its operand was broadcast.
Gradients3 bilinear_backward(const Tensor& grad, const Tensor& y_tensor, const Tensor& A_tensor,
                             const Tensor& x_tensor, bool need_y, bool need_A, bool need_x) {
  const char* op = "bilinear_backward";
  const Operand g(op, "grad", grad), y(op, "y", y_tensor), A(op, "A", A_tensor);
  const Operand x(op, "x", x_tensor);
  const Call call = check_operands(op, {&y, &A, &x, &g});
  const Dims batch = bilinear_batch(op, y, A, x);
  check_grad_shape(op, g, batch);
  const int64_t m = A.size(2), n = A.size(1);

  Result dy = need_y ? call.empty_like(y) : Result();
  Result dA = need_A ? call.empty_like(A) : Result();
  Result dx = need_x ? call.empty_like(x) : Result();
  bool dy_left = dy.numel != 0, dx_left = dx.numel != 0;

  if (m != 0 && n != 0 && (dy_left || dx_left) && matrix_per_item(A, batch)) {
    const bool dy_now = dy_left && !batch_reduced(y, 1, batch);
    const bool dx_now = dx_left && !batch_reduced(x, 1, batch);
    if (dy_now || dx_now) {
      form_gradients(call, g, y, A, x, batch, dy_now ? &dy : nullptr, dx_now ? &dx : nullptr);
    }
    dy_left = dy_left && !dy_now;
    dx_left = dx_left && !dx_now;
  }
  if (dy_left) {
    TripleProduct product({x.data, true}, {g.data}, {A.data, true}, dy.data);
    for (int64_t d = 0; d < batch.count; ++d) {
      product.add({batch.sizes[d], batch_stride(x, 1, batch, d), g.strides[d],
                   batch_stride(A, 2, batch, d), batch_stride(dy, 1, batch, d)});
    }
    product.add({m, 0, 0, A.stride(2), 1});
    product.add({n, x.stride(1), 0, A.stride(1), 0});
    run(call, product, Fused::kAllowed);
  }
  if (dx_left) {
    TripleProduct product({y.data, true}, {g.data}, {A.data, true}, dx.data);
    for (int64_t d = 0; d < batch.count; ++d) {
      product.add({batch.sizes[d], batch_stride(y, 1, batch, d), g.strides[d],
                   batch_stride(A, 2, batch, d), batch_stride(dx, 1, batch, d)});
    }
    product.add({n, 0, 0, A.stride(1), 1});
    product.add({m, y.stride(1), 0, A.stride(2), 0});
    run(call, product, Fused::kAllowed);
  }
  if (dA.numel != 0) {
    TripleProduct product({y.data, true}, {g.data}, {x.data, true}, dA.data);
    for (int64_t d = 0; d < batch.count; ++d) {
      product.add({batch.sizes[d], batch_stride(y, 1, batch, d), g.strides[d],
                   batch_stride(x, 1, batch, d), batch_stride(dA, 2, batch, d)});
    }
    product.add({m, y.stride(1), 0, 0, n});
    product.add({n, 0, 0, x.stride(1), 1});
    run(call, product, Fused::kAllowed);
  }
  return {take_if(need_y, dy), take_if(need_A, dA), take_if(need_x, dx)};
}

}  // namespace matcalc
