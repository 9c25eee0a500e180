#include "contraction.h"
#include "form.h"
#include "ops.h"
#include "shared_forms.h"

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

// p[..., i] = sum_j conj(A[..., i, j] x[..., j]), for each batch item that has its own; or q, of A
// transposed.
void run_product(const Call& call, const Operand& x, const Operand& A, int64_t a_row, int64_t a_col,
                 const Dims& batch, const Result& p) {
  ContractionBuilder builder(call, {x.data, true}, {}, {A.data, true}, p.data);
  builder.set_dtype_c(p.dtype);
  for (int64_t d = 0; d < batch.count; ++d) {
    builder.add({.size = p.sizes[d],
                 .a = batch_stride(x, 1, batch, d),
                 .b = batch_stride(A, 2, batch, d),
                 .c = p.strides[d]});
  }
  builder.add({.size = p.size(1), .b = a_row, .c = 1});
  builder.add({.size = x.size(1), .a = x.stride(1), .b = a_col});
  builder.run();
}

// The multiply-adds of a value by way of such a product: it, then its product with the other
// vector.
double product_cost(const Dims& product_batch, const Dims& batch, int64_t entries, int64_t summed) {
  double value = static_cast<double>(entries), product = value * static_cast<double>(summed);
  for (int64_t d = 0; d < batch.count; ++d) {
    product *= static_cast<double>(product_batch.sizes[d]);
    value *= static_cast<double>(batch.sizes[d]);
  }
  return product + value;
}

// Which of the two products several batch items have in common and takes less work, if one does.
struct SharedProduct {
  bool p, q;
};
SharedProduct shared_product(const Dims& p_batch, const Dims& q_batch, const Dims& batch, int64_t m,
                             int64_t n) {
  const double by_p = product_cost(p_batch, batch, m, n);
  const double by_q = product_cost(q_batch, batch, n, m);
  return {by_p < by_q && is_shared(p_batch, batch), by_q <= by_p && is_shared(q_batch, batch)};
}

// Whether u below is made even where no items share it: as large as its vector, it takes less than
// to generate it twice while operands are packed (float32 with 164 matrices of 99 x 25 for 113
// items each: 16.3 to 12.2 ms). In 16 bits it would be float32, whose products take longer.
bool pays_staged(const Call& call, const Operand& vector, const Dims& u_batch) {
  return call.kernels->calls_are_cheap && call.intermediate_dtype() == call.dtype &&
         !batch_reduced(vector, 1, u_batch);
}

// The gradients that have a product in common, u[..., j] = sum g[...] conj(x[..., j]) over the
// dimensions along which neither y nor A runs:
//
//   dy[..., i] = sum_j conj(A[..., i, j]) u[..., j],  dA[..., i, j] = conj(y[..., i]) u[..., j]
//
// each summed further over the dimensions that it lacks; dy may be nullptr. With x for y and A
// transposed, dx and dA.
void run_shared_gradients(const Call& call, const Operand& g, const Operand& y, const Operand& A,
                          const Operand& x, int64_t row, int64_t col, const Dims& batch,
                          const Dims& u_batch, const Result* dy, const Result& dA) {
  const int64_t m = y.size(1), n = x.size(1);
  const Result u = call.product(product_dims(u_batch, n), true);
  ContractionBuilder first(call, {x.data, true}, {}, {g.data}, u.data);
  ContractionBuilder for_y(call, {u.data}, {}, {A.data, true}, dy == nullptr ? nullptr : dy->data);
  ContractionBuilder for_A(call, {u.data}, {}, {y.data, true}, dA.data);
  first.set_dtype_c(u.dtype);
  for_y.set_dtype_a(u.dtype);
  for_A.set_dtype_a(u.dtype);
  for (int64_t d = 0; d < batch.count; ++d) {
    const int64_t along_u = batch_stride(u, 1, batch, d), along_A = batch_stride(A, 2, batch, d);
    first.add({.size = batch.sizes[d],
               .a = batch_stride(x, 1, batch, d),
               .b = g.strides[d],
               .c = along_u});
    if (u.sizes[d] == 1) continue;
    if (dy != nullptr) {
      for_y.add(
          {.size = u.sizes[d], .a = along_u, .b = along_A, .c = batch_stride(*dy, 1, batch, d)});
    }
    for_A.add({.size = u.sizes[d],
               .a = along_u,
               .b = batch_stride(y, 1, batch, d),
               .c = batch_stride(dA, 2, batch, d)});
  }
  first.add({.size = n, .a = x.stride(1), .c = 1});
  for_y.add({.size = m, .b = A.stride(row), .c = 1});
  for_y.add({.size = n, .a = 1, .b = A.stride(col)});
  for_A.add({.size = m, .b = y.stride(1), .c = dA.stride(row)});
  for_A.add({.size = n, .a = 1, .c = dA.stride(col)});
  if (u.numel != 0) first.run();
  if (dy != nullptr) for_y.run();
  for_A.run();
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
    run_form(call, {.y = &y, .A = &A, .x = &x, .alpha = &alpha}, batch);
    return alpha.take();
  }
  const std::optional<SharedForms> forms = find_shared_forms(y, A, x, batch, alpha);
  if (forms.has_value() && forms->out > 1) {
    run_values(call, *forms, nullptr, alpha.data);
    return alpha.take();
  }
  const Dims p_batch = product_batch(A, x, batch), q_batch = product_batch(A, y, batch);
  const SharedProduct one = shared_product(p_batch, q_batch, batch, m, n);
  if (one.p || one.q) {
    const Result product = one.p ? call.product(product_dims(p_batch, m), true)
                                 : call.product(product_dims(q_batch, n), true);
    if (one.p) run_product(call, x, A, A.stride(2), A.stride(1), batch, product);
    if (one.q) run_product(call, y, A, A.stride(1), A.stride(2), batch, product);
    value_of_product(call, product, one.p ? y : x, batch, 1, alpha);
    return alpha.take();
  }
  // p = A x or q = A^T y over the batch that has them, then its product with the other vector:
  // nothing is expanded to the whole batch. The fused product would make every y_i x_j.
  TripleProduct product({x.data}, {y.data}, {A.data}, alpha.data);
  for (int64_t d = 0; d < batch.count; ++d) {
    product.add({.size = batch.sizes[d],
                 .a = batch_stride(x, 1, batch, d),
                 .s = batch_stride(y, 1, batch, d),
                 .b = batch_stride(A, 2, batch, d),
                 .c = alpha.strides[d]});
  }
  product.add({.size = m, .s = y.stride(1), .b = A.stride(2)});
  product.add({.size = n, .a = x.stride(1), .b = A.stride(1)});
  run(call, product, Fused::kNever);
  return alpha.take();
}

// alpha as above, and for the backward pass
//   p[..., i] = sum_j conj(A[..., i, j] x[..., j])
//   q[..., j] = sum_i conj(A[..., i, j] y[..., i])
// all from one pass over A where each batch item has its own. Of size 1 along batch dimensions
// along which neither of the two factors runs. float32 beside bfloat16 and float16, so that a
// gradient is rounded once; but see Call::product.
std::tuple<Tensor, OptionalTensor, OptionalTensor> bilinear_products(const Tensor& y_tensor,
                                                                     const Tensor& A_tensor,
                                                                     const Tensor& x_tensor,
                                                                     bool need_p, bool need_q) {
  const char* op = "bilinear_products";
  const Operand y(op, "y", y_tensor), A(op, "A", A_tensor), x(op, "x", x_tensor);
  const Call call = check_operands(op, {&y, &A, &x});
  const Dims batch = bilinear_batch(op, y, A, x);
  if (!need_p && !need_q) fail(op, ": neither p nor q is asked for, expected one of them or both");
  const int64_t m = A.size(2), n = A.size(1);
  Result alpha = call.empty(batch);
  Result p, q;
  const Dims p_batch = product_batch(A, x, batch), q_batch = product_batch(A, y, batch);
  if (need_p) p = call.product(product_dims(p_batch, m), is_shared(p_batch, batch));
  if (need_q) q = call.product(product_dims(q_batch, n), is_shared(q_batch, batch));
  if (m == 0 || n == 0) {
    for (const Result* result : {&alpha, &p, &q}) {
      if (result->numel != 0) fill_zeros(call, *result);
    }
  } else if (alpha.numel != 0 && matrix_per_item(A, batch)) {
    run_form(call,
             {.y = &y,
              .A = &A,
              .x = &x,
              .alpha = &alpha,
              .dy = need_p ? &p : nullptr,
              .dx = need_q ? &q : nullptr},
             batch);
  } else if (alpha.numel != 0) {
    if (need_p) run_product(call, x, A, A.stride(2), A.stride(1), batch, p);
    if (need_q) run_product(call, y, A, A.stride(1), A.stride(2), batch, q);
    value_of_product(call, need_p ? p : q, need_p ? y : x, batch, 1, alpha);
  }
  return {alpha.take(), take_if(need_p, p), take_if(need_q, q)};
}

//   dy[..., i] = g[...] sum_j conj(A[..., i, j] x[..., j]), or g[...] p[..., i]
//   dA[..., i, j] = g[...] conj(y[..., i] x[..., j])
//   dx[..., j] = g[...] sum_i conj(A[..., i, j] y[..., i]), or g[...] q[..., j]
// each summed over the batch dimensions along which its operand was broadcast.
Gradients3 bilinear_products_backward(const Tensor& grad, const Tensor& y_tensor,
                                      const Tensor& A_tensor, const Tensor& x_tensor,
                                      const OptionalTensor& p_tensor,
                                      const OptionalTensor& q_tensor, bool need_y, bool need_A,
                                      bool need_x) {
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
  bool dy_left = dy.numel != 0, dA_left = dA.numel != 0, dx_left = dx.numel != 0;

  const Dims p_batch = product_batch(A, x, batch), q_batch = product_batch(A, y, batch);
  const auto from_product = [&](const OptionalTensor& tensor, const char* name,
                                const Dims& product_batch, int64_t entries, const Result& d,
                                bool* left) {
    if (!tensor.has_value() || !*left) return;
    const Operand product(op, name, *tensor);
    check_product(op, product, call, product_dims(product_batch, entries),
                  is_shared(product_batch, batch));
    scale_product(call, g, product, batch, d);
    *left = false;
  };
  from_product(p_tensor, "p", p_batch, m, dy, &dy_left);
  from_product(q_tensor, "q", q_batch, n, dx, &dx_left);

  if (m != 0 && n != 0 && matrix_per_item(A, batch)) {
    const bool dy_now = dy_left && !batch_reduced(y, 1, batch);
    const bool dA_now = dA_left && !batch_reduced(A, 2, batch);
    const bool dx_now = dx_left && !batch_reduced(x, 1, batch);
    if (dy_now || dA_now || dx_now) {
      run_form(call,
               {.y = &y,
                .A = &A,
                .x = &x,
                .g = &g,
                .dy = dy_now ? &dy : nullptr,
                .dA = dA_now ? &dA : nullptr,
                .dx = dx_now ? &dx : nullptr},
               batch);
    }
    dy_left = dy_left && !dy_now;
    dA_left = dA_left && !dA_now;
    dx_left = dx_left && !dx_now;
  }
  if (dA_left) {
    const SharedProduct one = shared_product(p_batch, q_batch, batch, m, n);
    const bool by_x = (dy_left && one.q) || pays_staged(call, x, q_batch);
    const bool by_y = (dx_left && one.p) || pays_staged(call, y, p_batch);
    if (by_y && (!by_x || (dx_left == dy_left ? m < n : dx_left))) {
      run_shared_gradients(call, g, x, A, y, 1, 2, batch, p_batch, dx_left ? &dx : nullptr, dA);
      dx_left = dA_left = false;
    } else if (by_x) {
      run_shared_gradients(call, g, y, A, x, 2, 1, batch, q_batch, dy_left ? &dy : nullptr, dA);
      dy_left = dA_left = false;
    }
  }
  if (dy_left && dx_left) {
    const std::optional<SharedForms> forms = find_shared_forms(y, A, x, batch, g);
    if (forms.has_value() && input_gradients_pay(call, *forms, false)) {
      run_input_gradients(call, *forms, g.data, dy.data, dx.data);
      dy_left = dx_left = false;
    }
  }
  if (dy_left) {
    TripleProduct product({x.data, true}, {g.data}, {A.data, true}, dy.data);
    for (int64_t d = 0; d < batch.count; ++d) {
      product.add({.size = batch.sizes[d],
                   .a = batch_stride(x, 1, batch, d),
                   .s = g.strides[d],
                   .b = batch_stride(A, 2, batch, d),
                   .c = batch_stride(dy, 1, batch, d)});
    }
    product.add({.size = m, .b = A.stride(2), .c = 1});
    product.add({.size = n, .a = x.stride(1), .b = A.stride(1)});
    run(call, product, Fused::kAllowed);
  }
  if (dx_left) {
    TripleProduct product({y.data, true}, {g.data}, {A.data, true}, dx.data);
    for (int64_t d = 0; d < batch.count; ++d) {
      product.add({.size = batch.sizes[d],
                   .a = batch_stride(y, 1, batch, d),
                   .s = g.strides[d],
                   .b = batch_stride(A, 2, batch, d),
                   .c = batch_stride(dx, 1, batch, d)});
    }
    product.add({.size = n, .b = A.stride(1), .c = 1});
    product.add({.size = m, .a = y.stride(1), .b = A.stride(2)});
    run(call, product, Fused::kAllowed);
  }
  if (dA_left) {
    TripleProduct product({y.data, true}, {g.data}, {x.data, true}, dA.data);
    for (int64_t d = 0; d < batch.count; ++d) {
      product.add({.size = batch.sizes[d],
                   .a = batch_stride(y, 1, batch, d),
                   .s = g.strides[d],
                   .b = batch_stride(x, 1, batch, d),
                   .c = batch_stride(dA, 2, batch, d)});
    }
    product.add({.size = m, .a = y.stride(1), .c = n});
    product.add({.size = n, .b = x.stride(1), .c = 1});
    run(call, product, Fused::kAllowed);
  }
  return {take_if(need_y, dy), take_if(need_A, dA), take_if(need_x, dx)};
}

Gradients3 bilinear_backward(const Tensor& grad, const Tensor& y, const Tensor& A, const Tensor& x,
                             bool need_y, bool need_A, bool need_x) {
  return bilinear_products_backward(grad, y, A, x, std::nullopt, std::nullopt, need_y, need_A,
                                    need_x);
}

}  // namespace matcalc
