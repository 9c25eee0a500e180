#include <algorithm>

#include "contraction.h"
#include "form.h"
#include "ops.h"
#include "shared_forms.h"

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

// (A + A^T) x as a matrix product, or 2 A x of the symmetric matrix in the lower triangle.
void add_fold(ContractionBuilder& builder, const Operand& A, const Operand& x, bool symmetric) {
  builder.add_fold(symmetric ? Fold::kSymmetric : Fold::kAddTranspose, A.size(1), A.stride(2),
                   A.stride(1), x.stride(1), 1);
  if (symmetric) builder.set_scale(2);
}

// Rows of a gradient of A that are multiplied at a time. Where the product is large against the
// copying (measured with 32 to 100000 summed items and n = 32 to 2048) a quarter of them, each up
// to the diagonal: 5/8 of the product.
int64_t gram_rows(const Call& call, const Dims& batch, const Result& dA) {
  constexpr int64_t kLeastSide = 128, kLeastHeight = 64, kHeightStep = 32;
  constexpr double kLeastItems = 256, kLeastWork = 1 << 26;
  const int64_t n = dA.size(1);
  double items = 1;  // that are summed over
  for (int64_t d = 0; d < batch.count; ++d) {
    if (batch_stride(dA, 2, batch, d) == 0) items *= static_cast<double>(batch.sizes[d]);
  }
  const bool pays = call.kernels->calls_are_cheap && n >= kLeastSide && items >= kLeastItems &&
                    items * static_cast<double>(dA.numel) >= kLeastWork;
  return pays ? std::max(kLeastHeight, (n / 4 + kHeightStep - 1) / kHeightStep * kHeightStep) : n;
}

// dA[..., i, j] = sum g[...] conj(x[..., i] x[..., j]) is symmetric: some rows at a time are
// multiplied up to the diagonal, and mirrored.
void run_gram(const Call& call, const Operand& g, const Operand& x, const Dims& batch,
              const Result& dA) {
  const int64_t n = dA.size(1), step = gram_rows(call, batch, dA);
  for (int64_t i = 0; i < n; i += step) {
    const int64_t height = std::min(step, n - i);
    void* rows = shifted(dA.data, i * n, call.dtype);
    TripleProduct product({shifted(x.data, i * x.stride(1), call.dtype), true}, {g.data},
                          {x.data, true}, rows);
    ContractionBuilder mirror(call, {}, {}, {rows}, shifted(dA.data, i, call.dtype));
    for (int64_t d = 0; d < batch.count; ++d) {
      const int64_t x_stride = batch_stride(x, 1, batch, d);
      const int64_t dA_stride = batch_stride(dA, 2, batch, d);
      product.add({.size = batch.sizes[d],
                   .a = x_stride,
                   .s = g.strides[d],
                   .b = x_stride,
                   .c = dA_stride});
      if (dA_stride != 0) mirror.add({.size = batch.sizes[d], .b = dA_stride, .c = dA_stride});
    }
    product.add({.size = height, .a = x.stride(1), .c = n});
    product.add({.size = i + height, .b = x.stride(1), .c = 1});
    run(call, product, Fused::kAllowed);
    mirror.add({.size = height, .b = n, .c = 1});
    mirror.add({.size = i, .b = 1, .c = n});
    if (i > 0) mirror.run();
  }
}

// Whether so few forms with one matrix are best made one after the other, where a product with all
// of them has to fold it first: a gradient, or a value with a symmetric matrix, of which each reads
// half. (Values of two, four and eight of n = 1024 in float32 take 22, 41 and 64 % of the time;
// gradients with a general matrix of two and four 34 and 68 %, of eight in complex64 the same.)
bool one_by_one(const Call& call, int64_t n, const Dims& batch, bool symmetric) {
  int64_t items = 1;
  for (int64_t d = 0; d < batch.count; ++d) items *= batch.sizes[d];
  const int64_t least_side = symmetric ? 128 : 256;
  const int64_t most_items = symmetric || is_complex(call.dtype) ? 8 : n < 512 ? 2 : 4;
  return call.kernels->calls_are_cheap && n >= least_side && items <= most_items;
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

  if (matrix_per_item(A, batch) || (symmetric && one_by_one(call, n, batch, symmetric))) {
    run_form(
        call,
        {.y = &x, .A = &A, .x = &x, .alpha = &alpha, .quadratic = true, .symmetric = symmetric},
        batch);
    return alpha.take();
  }
  const std::optional<SharedForms> forms = find_shared_forms(x, A, x, batch, alpha, symmetric);
  if (forms.has_value() && forms->out > 1) {
    run_values(call, *forms, nullptr, alpha.data);
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
    first.add(
        {.size = kept.sizes[d], .a = x_stride, .b = batch_stride(A, 2, batch, d), .c = t_stride});
    second.add({.size = batch.sizes[d], .a = t_stride, .b = x_stride, .c = alpha.strides[d]});
  }
  if (symmetric) {
    first.add_fold(Fold::kSymmetric, n, A.stride(2), A.stride(1), x.stride(1), 1);
  } else {
    first.add({.size = n, .b = A.stride(1), .c = 1});
    first.add({.size = n, .a = x.stride(1), .b = A.stride(2)});
  }
  second.add({.size = n, .a = 1, .b = x.stride(1)});
  first.run();
  second.run();
  return alpha.take();
}

// alpha as above, and for the backward pass, from the same pass over A,
//   p[..., i] = sum_j conj((A[..., i, j] + A[..., j, i]) x[..., j]), symmetric: 2 conj(A x),
// in float32 beside bfloat16 and float16.
std::tuple<Tensor, Tensor> quadratic_products(const Tensor& x_tensor, const Tensor& A_tensor,
                                              bool symmetric) {
  const char* op = "quadratic_products";
  const Operand x(op, "x", x_tensor), A(op, "A", A_tensor);
  const Call call = check_operands(op, {&x, &A});
  const Dims batch = quadratic_batch(op, x, A);
  const int64_t n = A.size(1);
  Result alpha = call.empty(batch);
  Result p = call.intermediate(product_dims(batch, n));
  if (n == 0) {
    if (alpha.numel != 0) fill_zeros(call, alpha);
  } else if (alpha.numel != 0 &&
             (matrix_per_item(A, batch) || one_by_one(call, n, batch, symmetric))) {
    run_form(call,
             {.y = &x,
              .A = &A,
              .x = &x,
              .alpha = &alpha,
              .dx = &p,
              .quadratic = true,
              .symmetric = symmetric},
             batch);
  } else if (alpha.numel != 0) {
    ContractionBuilder builder(call, {x.data, true}, {}, {A.data, true}, p.data);
    builder.intermediate_c();
    for (int64_t d = 0; d < batch.count; ++d) {
      builder.add({.size = batch.sizes[d],
                   .a = batch_stride(x, 1, batch, d),
                   .b = batch_stride(A, 2, batch, d),
                   .c = p.strides[d]});
    }
    add_fold(builder, A, x, symmetric);
    builder.run();
    value_of_product(call, p, x, batch, 0.5, alpha);
  }
  return {alpha.take(), p.take()};
}

//   dx[..., i] = g[...] sum_j conj((A[..., i, j] + A[..., j, i]) x[..., j]), or g[...] p[..., i]
//   dA[..., i, j] = g[...] conj(x[..., i] x[..., j])
// each summed over the batch dimensions along which its operand was broadcast; symmetric: both
// A[..., i, j] and A[..., j, i] are that of the lower triangle.
Gradients2 quadratic_products_backward(const Tensor& grad, const Tensor& x_tensor,
                                       const Tensor& A_tensor, const OptionalTensor& p_tensor,
                                       bool symmetric, bool need_x, bool need_A) {
  const char* op = "quadratic_backward";
  const Operand g(op, "grad", grad), x(op, "x", x_tensor), A(op, "A", A_tensor);
  const Call call = check_operands(op, {&x, &A, &g});
  const Dims batch = quadratic_batch(op, x, A);
  check_grad_shape(op, g, batch);
  const int64_t n = A.size(1);

  Result dx = need_x ? call.empty_like(x) : Result();
  Result dA = need_A ? call.empty_like(A) : Result();
  bool dx_left = dx.numel != 0, dA_left = dA.numel != 0;
  if (dx_left && p_tensor.has_value() && !batch_reduced(x, 1, batch)) {
    const Operand p(op, "p", *p_tensor);
    check_product(op, p, call, product_dims(batch, n), false);
    scale_product(call, g, p, batch, dx);
    dx_left = false;
  }
  if (n != 0 && (matrix_per_item(A, batch) || one_by_one(call, n, batch, symmetric))) {
    const bool dx_now = dx_left && !batch_reduced(x, 1, batch);
    const bool dA_now = dA_left && !batch_reduced(A, 2, batch);
    if (dx_now || dA_now) {
      run_form(call,
               {.y = &x,
                .A = &A,
                .x = &x,
                .g = &g,
                .dA = dA_now ? &dA : nullptr,
                .dx = dx_now ? &dx : nullptr,
                .quadratic = true,
                .symmetric = symmetric},
               batch);
    }
    dx_left = dx_left && !dx_now;
    dA_left = dA_left && !dA_now;
  }
  if (dx_left && n != 0) {
    const std::optional<SharedForms> forms = find_shared_forms(x, A, x, batch, g, symmetric);
    if (forms.has_value() && input_gradients_pay(call, *forms, true)) {
      run_input_gradients(call, *forms, g.data, dx.data, nullptr);
      dx_left = false;
    }
  }
  if (dx_left) {
    ContractionBuilder builder(call, {x.data, true}, {g.data}, {A.data, true}, dx.data);
    for (int64_t d = 0; d < batch.count; ++d) {
      builder.add({.size = batch.sizes[d],
                   .a = batch_stride(x, 1, batch, d),
                   .s = g.strides[d],
                   .b = batch_stride(A, 2, batch, d),
                   .c = batch_stride(dx, 1, batch, d)});
    }
    add_fold(builder, A, x, symmetric);
    builder.run();
  }
  if (dA_left) run_gram(call, g, x, batch, dA);
  return {take_if(need_x, dx), take_if(need_A, dA)};
}

Gradients2 quadratic_backward(const Tensor& grad, const Tensor& x, const Tensor& A, bool symmetric,
                              bool need_x, bool need_A) {
  return quadratic_products_backward(grad, x, A, std::nullopt, symmetric, need_x, need_A);
}

}  // namespace matcalc
