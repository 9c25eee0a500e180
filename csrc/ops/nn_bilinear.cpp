#include "contraction.h"
#include "ops.h"
#include "shared_forms.h"

namespace matcalc {
namespace {

// input1 is (..., in1), input2 (..., in2) with the same leading dimensions, weight (out, in1, in2).
struct NnBilinearShape {
  int64_t lead;
  int64_t in1, in2, out;
  Dims result;
};

NnBilinearShape nn_bilinear_shape(const char* op, const Operand& x1, const Operand& x2,
                                  const Operand& w) {
  check_min_dim(op, x1, 1);
  check_min_dim(op, x2, 1);
  if (w.dim != 3) {
    fail(op, ": weight has shape ", w.shape(), ", expected (out, in1, in2)");
  }
  NnBilinearShape shape;
  shape.lead = x1.dim - 1;
  shape.in1 = w.size(2);
  shape.in2 = w.size(1);
  shape.out = w.size(3);
  bool same = x1.dim == x2.dim;
  for (int64_t d = 0; same && d < shape.lead; ++d) same = x1.sizes[d] == x2.sizes[d];
  if (!same) {
    fail(op, ": input1 has shape ", x1.shape(), " and input2 has shape ", x2.shape(),
         ", expected the same leading dimensions");
  }
  if (x1.size(1) != shape.in1) {
    fail(op, ": input1 has ", x1.size(1), " entries in its last dimension, weight ", w.shape(),
         " takes ", shape.in1);
  }
  if (x2.size(1) != shape.in2) {
    fail(op, ": input2 has ", x2.size(1), " entries in its last dimension, weight ", w.shape(),
         " takes ", shape.in2);
  }
  for (int64_t d = 0; d < shape.lead; ++d) shape.result.push(x1.sizes[d]);
  shape.result.push(shape.out);
  return shape;
}

// Whether run_values, whose products are rows x in2 wide for each output, beats a single product
// that is `out` columns wide over a generated operand of rows x (in1 in2) entries. Making that
// operand costs as much as eight columns of the product, and as much again until enough columns
// keep the register tiles busy (measured with 4 to 256 inputs, 2 to 256 outputs and 1 to 4096
// rows); AMX's multiply so fast that it is most of the work, the more so the larger the matrices.
// Against a product for each output speaks its start, where the matrices are small or a start is a
// kernel launch. The rows have no say, for the two add in different orders.
bool output_by_output(const Call& call, const NnBilinearShape& shape, const Operand& x2,
                      bool bias) {
  constexpr int64_t kFewOutputs = 8, kSomeOutputs = 32, kManyOutputs = 128;
  constexpr int64_t kSmallMatrix = 16 * 16, kMiddleMatrix = 64 * 64, kLargeMatrix = 96 * 96;
  if (shape.in1 == 0 || shape.in2 == 0) return false;
  for (int64_t d = 0; bias && d < shape.lead; ++d) {
    if (x2.strides[d] == 0 && x2.sizes[d] != 1) return false;
  }
  if (shape.out < kFewOutputs) return true;
  const int64_t entries = shape.in1 * shape.in2;
  if (!call.kernels->calls_are_cheap || entries < kSmallMatrix) return false;
  if (generated_by_tiles(call, shape.in1, shape.in2)) {
    const int64_t times = entries < kLargeMatrix ? 1 : entries < 4 * kLargeMatrix ? 2 : 3;
    return shape.out < times * kSomeOutputs;
  }
  if (entries >= kLargeMatrix && dtype_size(call.dtype) > 2) return true;
  return shape.out < (entries < kMiddleMatrix ? kSomeOutputs : kManyOutputs);
}

// What z, or its gradient, and the rows of the inputs share in memory.
template <class Z>
SharedForms shared_forms(const NnBilinearShape& shape, const Operand& x1, const Operand& x2,
                         const Operand& w, const Z& z) {
  SharedForms forms{.x1 = x1.data,
                    .x2 = x2.data,
                    .w = w.data,
                    .in1 = shape.in1,
                    .in2 = shape.in2,
                    .out = shape.out,
                    .x1_i = x1.stride(1),
                    .x2_j = x2.stride(1),
                    .w_o = w.stride(3),
                    .w_i = w.stride(2),
                    .w_j = w.stride(1),
                    .z_o = z.stride(1)};
  for (int64_t d = 0; d < shape.lead; ++d) {
    if (x1.sizes[d] == 1) continue;
    forms.rows.push(
        {.size = x1.sizes[d], .a = x1.strides[d], .s = x2.strides[d], .c = z.strides[d]});
  }
  return forms;
}

// Whether a gradient of the inputs comes by way of V, which gives both. It does so alone, too,
// where it is the narrower one, whose few columns are a small part of a register tile, or where the
// matrices are small (measured with 1 to 2048 rows and 8 to 78 outputs: 1.1 to 5 times as fast).
bool by_both_gradients(const Call& call, const SharedForms& forms, bool first, bool second) {
  constexpr int64_t kNarrow = 16, kNarrowOfSmall = 32, kSmallMatrix = 32 * 32;
  const int64_t entries = forms.in1 * forms.in2;
  if (!(first || second) || entries * forms.row_count() == 0 ||
      !input_gradients_pay(call, forms, false)) {
    return false;
  }
  const int64_t narrow = entries <= kSmallMatrix ? kNarrowOfSmall : kNarrow;
  return (first && second) || (first ? forms.in1 : forms.in2) <= narrow;
}

// Whether the gradient of the weight has its rows from input2, the narrower one, and its columns
// from input1. (128 rows, in float32: 512 x 6 to 16 outputs in a fifth of the time, 512 x 32 in two
// thirds, 128 x 64 in five sixths.)
bool turns(const Call& call, const NnBilinearShape& shape) {
  const bool by_tiles = call.kernels->tiles != nullptr && call.kernels->tiles(call.dtype);
  return call.kernels->calls_are_cheap && !by_tiles && shape.in2 < shape.in1;
}

}  // namespace

// Z[..., o] = sum_ij x1[..., i] W[o, i, j] x2[..., j] + bias[o]
Tensor nn_bilinear(const Tensor& input1, const Tensor& input2, const Tensor& weight,
                   const OptionalTensor& bias) {
  const char* op = "nn_bilinear";
  const Operand x1(op, "input1", input1), x2(op, "input2", input2), w(op, "weight", weight);
  std::optional<Operand> b;
  if (bias.has_value()) b.emplace(op, "bias", *bias);
  const Operand* b_or_null = b.has_value() ? &*b : nullptr;
  const Call call = check_operands(op, {&x1, &x2, &w, b_or_null});
  const NnBilinearShape shape = nn_bilinear_shape(op, x1, x2, w);
  if (b.has_value() && (b->dim != 1 || b->sizes[0] != shape.out)) {
    fail(op, ": bias has shape ", b->shape(), ", expected [", shape.out,
         "], the first of weight's ", "dimensions");
  }
  Result z = call.empty(shape.result);
  if (z.numel == 0) return z.take();

  if (output_by_output(call, shape, x2, b.has_value())) {
    run_values(call, shared_forms(shape, x1, x2, w, z), b_or_null, z.data);
    return z.take();
  }
  ContractionBuilder builder(call, {x2.data}, {x1.data}, {w.data}, z.data);
  for (int64_t d = 0; d < shape.lead; ++d) {
    builder.add({.size = x1.sizes[d], .a = x2.strides[d], .s = x1.strides[d], .c = z.strides[d]});
  }
  if (b.has_value()) {
    builder.add_bias(b->data, b->stride(1), shape.out, w.stride(3), 1);
  } else {
    builder.add({.size = shape.out, .b = w.stride(3), .c = 1});
  }
  builder.add({.size = shape.in1, .s = x1.stride(1), .b = w.stride(2)});
  builder.add({.size = shape.in2, .a = x2.stride(1), .b = w.stride(1)});
  builder.run();
  return z.take();
}

//   dx1[..., i] = sum_oj g[..., o] conj(W[o, i, j] x2[..., j])
//   dx2[..., j] = sum_oi g[..., o] conj(W[o, i, j] x1[..., i])
//   dW[o, i, j] = sum_... g[..., o] conj(x1[..., i] x2[..., j])
//   dbias[o] = sum_... g[..., o]
Gradients4 nn_bilinear_backward(const Tensor& grad, const Tensor& input1, const Tensor& input2,
                                const Tensor& weight, bool need_input1, bool need_input2,
                                bool need_weight, bool need_bias) {
  const char* op = "nn_bilinear_backward";
  const Operand g(op, "grad", grad), x1(op, "input1", input1), x2(op, "input2", input2);
  const Operand w(op, "weight", weight);
  const Call call = check_operands(op, {&x1, &x2, &w, &g});
  const NnBilinearShape shape = nn_bilinear_shape(op, x1, x2, w);
  check_grad_shape(op, g, shape.result);

  Gradients4 gradients;
  const SharedForms forms = shared_forms(shape, x1, x2, w, g);
  const bool by_both = by_both_gradients(call, forms, need_input1, need_input2);
  Result dx1 = need_input1 || by_both ? call.empty_like(x1) : Result();
  Result dx2 = need_input2 || by_both ? call.empty_like(x2) : Result();
  if (by_both) {
    run_input_gradients(call, forms, g.data, dx1.data, dx2.data);
  } else {
    if (dx1.numel != 0) {
      ContractionBuilder builder(call, {x2.data, true}, {g.data}, {w.data, true}, dx1.data);
      for (int64_t d = 0; d < shape.lead; ++d) {
        builder.add(
            {.size = x1.sizes[d], .a = x2.strides[d], .s = g.strides[d], .c = dx1.strides[d]});
      }
      builder.add({.size = shape.in1, .b = w.stride(2), .c = 1});
      builder.add({.size = shape.out, .s = g.stride(1), .b = w.stride(3)});
      builder.add({.size = shape.in2, .a = x2.stride(1), .b = w.stride(1)});
      builder.run();
    }
    if (dx2.numel != 0) {
      ContractionBuilder builder(call, {x1.data, true}, {g.data}, {w.data, true}, dx2.data);
      for (int64_t d = 0; d < shape.lead; ++d) {
        builder.add(
            {.size = x1.sizes[d], .a = x1.strides[d], .s = g.strides[d], .c = dx2.strides[d]});
      }
      builder.add({.size = shape.in2, .b = w.stride(1), .c = 1});
      builder.add({.size = shape.out, .s = g.stride(1), .b = w.stride(3)});
      builder.add({.size = shape.in1, .a = x1.stride(1), .b = w.stride(2)});
      builder.run();
    }
  }
  std::get<0>(gradients) = take_if(need_input1, dx1);
  std::get<1>(gradients) = take_if(need_input2, dx2);
  if (need_weight) {
    Result dw = call.empty_like(w);
    if (dw.numel != 0) {
      // Columns of the narrower input would leave much of each register tile unused.
      const bool turned = turns(call, shape);
      const Operand &rows = turned ? x2 : x1, &cols = turned ? x1 : x2;
      ContractionBuilder builder(call, {rows.data, true}, {g.data}, {cols.data, true}, dw.data);
      for (int64_t d = 0; d < shape.lead; ++d) {
        builder.add(
            {.size = x1.sizes[d], .a = rows.strides[d], .s = g.strides[d], .b = cols.strides[d]});
      }
      builder.add({.size = shape.out, .s = g.stride(1), .c = dw.strides[0]});
      builder.add({.size = rows.size(1), .a = rows.stride(1), .c = dw.strides[turned ? 2 : 1]});
      builder.add({.size = cols.size(1), .b = cols.stride(1), .c = dw.strides[turned ? 1 : 2]});
      builder.run();
    }
    std::get<2>(gradients) = dw.take();
  }
  if (need_bias) {
    const int64_t size = shape.out;
    Result db = call.empty(&size, 1);
    if (db.numel != 0) {
      DimList<LoopDim> dims;
      for (int64_t d = 0; d < shape.lead; ++d) dims.push({.size = x1.sizes[d], .b = g.strides[d]});
      dims.push({.size = shape.out, .b = g.stride(1), .c = 1});
      run_sum(call, dims, g.data, db.data);
    }
    std::get<3>(gradients) = db.take();
  }
  return gradients;
}

}  // namespace matcalc
