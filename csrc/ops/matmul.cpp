#include "contraction.h"
#include "ops.h"

namespace matcalc {
namespace {

// a is (..., m, k) or (k,), b is (..., k, n) or (k,).
struct MatmulShape {
  int64_t own_a, own_b;  // how many last dimensions are not batch: 2, or 1 of a vector
  int64_t m, n, k;
  int64_t a_m, a_k, b_k, b_n;  // strides
  Dims batch;
  Dims out;  // (..., m, n), without m or n where a or b is a vector
};

MatmulShape matmul_shape(const char* op, const Operand& a, const Operand& b) {
  for (const Operand* operand : {&a, &b}) check_min_dim(op, *operand, 1);
  MatmulShape shape;
  shape.own_a = a.dim == 1 ? 1 : 2;
  shape.own_b = b.dim == 1 ? 1 : 2;
  shape.m = shape.own_a == 2 ? a.size(2) : 1;
  shape.k = a.size(1);
  shape.n = shape.own_b == 2 ? b.size(1) : 1;
  if (b.size(shape.own_b) != shape.k) {
    fail(op, ": a has ", shape.k, " entries in its last dimension, b has ", b.size(shape.own_b),
         shape.own_b == 2 ? " rows" : " entries", " (shapes ", a.shape(), " and ", b.shape(), ")");
  }
  shape.a_m = shape.own_a == 2 ? a.stride(2) : 0;
  shape.a_k = a.stride(1);
  shape.b_k = b.stride(shape.own_b);
  shape.b_n = shape.own_b == 2 ? b.stride(1) : 0;
  shape.batch = broadcast_batch(op, {{&a, shape.own_a}, {&b, shape.own_b}});
  shape.out = shape.batch;
  if (shape.own_a == 2) shape.out.push(shape.m);
  if (shape.own_b == 2) shape.out.push(shape.n);
  return shape;
}

}  // namespace

// Y[..., m, n] = sum_k A[..., m, k] B[..., k, n]
Tensor matmul(const Tensor& a_tensor, const Tensor& b_tensor) {
  const char* op = "matmul";
  const Operand a(op, "a", a_tensor), b(op, "b", b_tensor);
  const Call call = check_operands(op, {&a, &b}, Integers::kAccepted);
  const MatmulShape shape = matmul_shape(op, a, b);
  Result out = call.empty(shape.out);
  if (out.numel == 0) return out.take();

  ContractionBuilder builder(call, {a.data}, {}, {b.data}, out.data);
  for (int64_t d = 0; d < shape.batch.count; ++d) {
    builder.add({.size = shape.batch.sizes[d],
                 .a = batch_stride(a, shape.own_a, shape.batch, d),
                 .b = batch_stride(b, shape.own_b, shape.batch, d),
                 .c = out.strides[d]});
  }
  builder.add({.size = shape.m, .a = shape.a_m, .c = shape.n});
  builder.add({.size = shape.n, .b = shape.b_n, .c = 1});
  builder.add({.size = shape.k, .a = shape.a_k, .b = shape.b_k});
  builder.run();
  return out.take();
}

//   dA[..., m, k] = sum_n g[..., m, n] conj(B[..., k, n])
//   dB[..., k, n] = sum_m conj(A[..., m, k]) g[..., m, n]
// each summed over the batch dimensions along which its matrix was broadcast.
Gradients2 matmul_backward(const Tensor& grad, const Tensor& a_tensor, const Tensor& b_tensor,
                           bool need_a, bool need_b) {
  const char* op = "matmul_backward";
  const Operand g(op, "grad", grad), a(op, "a", a_tensor), b(op, "b", b_tensor);
  const Call call = check_operands(op, {&a, &b, &g});
  const MatmulShape shape = matmul_shape(op, a, b);
  check_grad_shape(op, g, shape.out);
  const int64_t own_g = shape.own_a + shape.own_b - 2;
  const int64_t g_m = shape.own_a == 2 ? g.stride(own_g) : 0;
  const int64_t g_n = shape.own_b == 2 ? g.stride(1) : 0;

  Gradients2 gradients;
  if (need_a) {
    Result da = call.empty_like(a);
    if (da.numel != 0) {
      ContractionBuilder builder(call, {g.data}, {}, {b.data, true}, da.data);
      for (int64_t d = 0; d < shape.batch.count; ++d) {
        builder.add({.size = shape.batch.sizes[d],
                     .a = batch_stride(g, own_g, shape.batch, d),
                     .b = batch_stride(b, shape.own_b, shape.batch, d),
                     .c = batch_stride(da, shape.own_a, shape.batch, d)});
      }
      builder.add({.size = shape.m, .a = g_m, .c = shape.k});
      builder.add({.size = shape.k, .b = shape.b_k, .c = 1});
      builder.add({.size = shape.n, .a = g_n, .b = shape.b_n});
      builder.run();
    }
    std::get<0>(gradients) = da.take();
  }
  if (need_b) {
    Result db = call.empty_like(b);
    if (db.numel != 0) {
      ContractionBuilder builder(call, {a.data, true}, {}, {g.data}, db.data);
      for (int64_t d = 0; d < shape.batch.count; ++d) {
        builder.add({.size = shape.batch.sizes[d],
                     .a = batch_stride(a, shape.own_a, shape.batch, d),
                     .b = batch_stride(g, own_g, shape.batch, d),
                     .c = batch_stride(db, shape.own_b, shape.batch, d)});
      }
      builder.add({.size = shape.k, .a = shape.a_k, .c = shape.n});
      builder.add({.size = shape.n, .b = g_n, .c = 1});
      builder.add({.size = shape.m, .a = shape.a_m, .b = g_m});
      builder.run();
    }
    std::get<1>(gradients) = db.take();
  }
  return gradients;
}

}  // namespace matcalc
