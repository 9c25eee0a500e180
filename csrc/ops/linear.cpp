#include "contraction.h"
#include "ops.h"

namespace matcalc {
namespace {

// input is (..., in), weight is (out, in) or (in,), bias is (out,) or of one element.
struct LinearShape {
  bool one_output;  // weight is a vector: the output has no last dimension for it
  int64_t lead;     // leading dimensions of the input
  int64_t in, out;
  int64_t w_out;  // stride
  Dims result;
};

LinearShape linear_shape(const char* op, const Operand& input, const Operand& weight,
                         const Operand* bias) {
  check_min_dim(op, input, 1);
  if (weight.dim != 1 && weight.dim != 2) {
    fail(op, ": weight has shape ", weight.shape(), ", expected (out, in) or (in,)");
  }
  LinearShape shape;
  shape.one_output = weight.dim == 1;
  shape.lead = input.dim - 1;
  shape.in = input.size(1);
  shape.out = shape.one_output ? 1 : weight.size(2);
  shape.w_out = shape.one_output ? 0 : weight.stride(2);
  if (weight.size(1) != shape.in) {
    fail(op, ": input has ", shape.in, " entries in its last dimension, weight has ",
         weight.size(1), shape.one_output ? " entries" : " columns", " (shapes ", input.shape(),
         " and ", weight.shape(), ")");
  }
  for (int64_t d = 0; d < shape.lead; ++d) shape.result.push(input.sizes[d]);
  if (!shape.one_output) shape.result.push(shape.out);
  if (bias != nullptr) {
    const bool fits = bias->dim == 1 && bias->sizes[0] == shape.out;
    bool one = true;
    for (int64_t d = 0; d < bias->dim; ++d) one = one && bias->sizes[d] == 1;
    if (!fits && !one) {
      fail(op, ": bias has shape ", bias->shape(), ", expected [", shape.out,
           "], the rows of weight, or one element");
    }
  }
  return shape;
}

}  // namespace

// Z[..., o] = sum_i X[..., i] W[o, i] + bias[o]
Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias) {
  const char* op = "linear";
  const Operand x(op, "input", input), w(op, "weight", weight);
  std::optional<Operand> b;
  if (bias.has_value()) b.emplace(op, "bias", *bias);
  const Operand* b_or_null = b.has_value() ? &*b : nullptr;
  const Call call = check_operands(op, {&x, &w, b_or_null});
  const LinearShape shape = linear_shape(op, x, w, b_or_null);
  Result out = call.empty(shape.result);
  if (out.numel == 0) return out.take();

  ContractionBuilder builder(call, {x.data}, {}, {w.data}, out.data);
  for (int64_t d = 0; d < shape.lead; ++d) {
    builder.add({.size = x.sizes[d], .a = x.strides[d], .c = out.strides[d]});
  }
  if (b.has_value()) {
    builder.add_bias(b->data, b->dim == 1 ? b->stride(1) : 0, shape.out, shape.w_out, 1);
  } else {
    builder.add({.size = shape.out, .b = shape.w_out, .c = 1});
  }
  builder.add({.size = shape.in, .a = x.stride(1), .b = w.stride(1)});
  builder.run();
  return out.take();
}

//   dX[..., i] = sum_o g[..., o] conj(W[o, i])
//   dW[o, i] = sum_... g[..., o] conj(X[..., i])
//   dbias[o] = sum_... g[..., o]
Gradients3 linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                           const OptionalTensor& bias, bool need_input, bool need_weight,
                           bool need_bias) {
  const char* op = "linear_backward";
  const Operand g(op, "grad", grad), x(op, "input", input), w(op, "weight", weight);
  std::optional<Operand> b;
  if (bias.has_value()) b.emplace(op, "bias", *bias);
  const Operand* b_or_null = b.has_value() ? &*b : nullptr;
  if (need_bias && !b.has_value()) fail(op, ": a gradient for bias is asked for, but bias is None");
  const Call call = check_operands(op, {&x, &w, &g, b_or_null});
  const LinearShape shape = linear_shape(op, x, w, b_or_null);
  check_grad_shape(op, g, shape.result);
  const int64_t g_out = shape.one_output ? 0 : g.stride(1);

  Gradients3 gradients;
  if (need_input) {
    Result dx = call.empty_like(x);
    if (dx.numel != 0) {
      ContractionBuilder builder(call, {g.data}, {}, {w.data, true}, dx.data);
      for (int64_t d = 0; d < shape.lead; ++d) {
        builder.add({.size = x.sizes[d], .a = g.strides[d], .c = dx.strides[d]});
      }
      builder.add({.size = shape.in, .b = w.stride(1), .c = 1});
      builder.add({.size = shape.out, .a = g_out, .b = shape.w_out});
      builder.run();
    }
    std::get<0>(gradients) = dx.take();
  }
  if (need_weight) {
    Result dw = call.empty_like(w);
    if (dw.numel != 0) {
      ContractionBuilder builder(call, {g.data}, {}, {x.data, true}, dw.data);
      for (int64_t d = 0; d < shape.lead; ++d) {
        builder.add({.size = x.sizes[d], .a = g.strides[d], .b = x.strides[d]});
      }
      builder.add({.size = shape.out, .a = g_out, .c = shape.in});
      builder.add({.size = shape.in, .b = x.stride(1), .c = 1});
      builder.run();
    }
    std::get<1>(gradients) = dw.take();
  }
  if (need_bias) {
    Result db = call.empty_like(*b);
    if (db.numel != 0) {
      DimList<LoopDim> dims;
      for (int64_t d = 0; d < shape.lead; ++d) dims.push({.size = x.sizes[d], .b = g.strides[d]});
      dims.push({.size = shape.out, .b = g_out, .c = db.numel == 1 ? 0 : 1});
      run_sum(call, dims, g.data, db.data);
    }
    std::get<2>(gradients) = db.take();
  }
  return gradients;
}

}  // namespace matcalc
