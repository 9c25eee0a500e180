#include "form.h"

#include "contraction.h"

namespace matcalc {

bool matrix_per_item(const Operand& A, const Dims& batch) {
  for (int64_t d = 0; d < batch.count; ++d) {
    if (batch.sizes[d] > 1 && batch_stride(A, 2, batch, d) == 0) return false;
  }
  return true;
}

void run_form(const Call& call, const FormArguments& arguments, const Dims& batch) {
  const auto& [y, A, x, g, alpha, dy, dA, dx, quadratic, symmetric] = arguments;
  const auto along = [&](const auto* tensor, int64_t own, int64_t d) {
    return tensor == nullptr ? 0 : batch_stride(*tensor, own, batch, d);
  };
  const auto data = [](const Result* result) { return result == nullptr ? nullptr : result->data; };
  const Result* vector = dy != nullptr ? dy : dx;
  Form form;
  form.dtype = call.dtype;
  form.dtype_d = vector != nullptr ? vector->dtype : call.dtype;
  form.rows = A->size(2);
  form.cols = A->size(1);
  form.y = y->data;
  form.a = A->data;
  form.x = x->data;
  form.y_stride = y->stride(1);
  form.a_row = A->stride(2);
  form.a_col = A->stride(1);
  form.x_stride = x->stride(1);
  form.quadratic = quadratic;
  form.symmetric = symmetric;
  form.g = g == nullptr ? nullptr : g->data;
  form.alpha = data(alpha);
  form.dy = data(dy);
  form.da = data(dA);
  form.dx = data(dx);
  form.dy_stride = dy == nullptr ? 0 : dy->stride(1);
  form.dx_stride = dx == nullptr ? 0 : dx->stride(1);
  form.device = call.device_index;
  for (int64_t d = 0; d < batch.count; ++d) {
    if (batch.sizes[d] == 1) continue;
    form.batch.push({.size = batch.sizes[d],
                     .y = along(y, 1, d),
                     .a = along(A, 2, d),
                     .x = along(x, 1, d),
                     .g = along(g, 0, d),
                     .alpha = along(alpha, 0, d),
                     .dy = along(dy, 1, d),
                     .da = along(dA, 2, d),
                     .dx = along(dx, 1, d)});
  }
  order_and_merge(form.batch, [](const FormDim& dim) { return dim.a; },
                  {&FormDim::y, &FormDim::a, &FormDim::x, &FormDim::g, &FormDim::alpha,
                   &FormDim::dy, &FormDim::da, &FormDim::dx});
  call.kernels->form(form);
}

Dims product_batch(const Operand& A, const Operand& x, const Dims& batch) {
  Dims dims;
  for (int64_t d = 0; d < batch.count; ++d) {
    dims.push(A.size(batch.count - d + 2) == 1 ? x.size(batch.count - d + 1) : batch.sizes[d]);
  }
  return dims;
}

bool is_shared(const Dims& product_batch, const Dims& batch) {
  for (int64_t d = 0; d < batch.count; ++d) {
    if (product_batch.sizes[d] != batch.sizes[d]) return true;
  }
  return false;
}

Dims product_dims(const Dims& product_batch, int64_t entries) {
  Dims dims = product_batch;
  dims.push(entries);
  return dims;
}

void scale_product(const Call& call, const Operand& g, const Operand& p, const Dims& batch,
                   const Result& d) {
  ContractionBuilder builder(call, {p.data}, {}, {g.data}, d.data);
  if (p.dtype != call.torch_dtype) builder.intermediate_a();
  for (int64_t i = 0; i < batch.count; ++i) {
    builder.add({.size = batch.sizes[i],
                 .a = batch_stride(p, 1, batch, i),
                 .b = batch_stride(g, 0, batch, i),
                 .c = batch_stride(d, 1, batch, i)});
  }
  builder.add({.size = p.size(1), .a = p.stride(1), .c = 1});
  builder.run();
}

void value_of_product(const Call& call, const Result& p, const Operand& x, const Dims& batch,
                      double scale, const Result& alpha) {
  ContractionBuilder builder(call, {p.data, true}, {}, {x.data}, alpha.data);
  builder.set_dtype_a(p.dtype);
  for (int64_t d = 0; d < batch.count; ++d) {
    builder.add({.size = batch.sizes[d],
                 .a = batch_stride(p, 1, batch, d),
                 .b = batch_stride(x, 1, batch, d),
                 .c = batch_stride(alpha, 0, batch, d)});
  }
  builder.add({.size = p.size(1), .a = 1, .b = x.stride(1)});
  builder.set_scale(scale);
  builder.run();
}

void check_product(const char* op, const Operand& p, const Call& call, const Dims& expected,
                   bool operand) {
  const int32_t dtype =
      operand && call.rounds_products() ? call.torch_dtype : call.intermediate_torch_dtype();
  const bool alike =
      p.dtype == dtype && p.device_type == call.device_type && p.device_index == call.device_index;
  if (!alike || !has_shape(p, expected)) {
    fail(op, ": ", p.name, " has shape ", p.shape(), alike ? "" : " and another dtype or device",
         ", expected the product of shape ", expected.shape(), " as the forward op returned it");
  }
}

}  // namespace matcalc
