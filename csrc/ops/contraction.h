// From the shape equation of an op to the Contraction of the kernels: the loop dimensions are
// sorted into batch, m, n and k by which operands run through them, ordered and merged.
#pragma once

#include <type_traits>

#include "tensor.h"

namespace matcalc {

// `data` and so many elements further.
template <class Data>
Data* shifted(Data* data, int64_t elements, Dtype dtype) {
  using Byte = std::conditional_t<std::is_const_v<Data>, const char, char>;
  return static_cast<Byte*>(data) + elements * dtype_size(dtype);
}

// One loop dimension and the stride of each operand along it, 0 where it does not run along it.
struct LoopDim {
  int64_t size;
  int64_t a = 0, s = 0, b = 0, c = 0;
};

// An input of a product.
struct Factor {
  const void* data = nullptr;
  bool conj = false;
};

// C = bias + scale * sum over the dimensions that C lacks of A * S * B.
class ContractionBuilder {
 public:
  ContractionBuilder(const Call& call, Factor a, Factor s, Factor b, void* c);

  // A dimension of any class. Of size 1 it is dropped.
  void add(const LoopDim& dim);
  // The dimension that the bias runs along: in the n list whatever the strides say, and kept there
  // even where its size is 1.
  void add_bias(const void* bias, int64_t bias_stride, int64_t size, int64_t b, int64_t c);
  // The square matrix under a fold: its rows are the innermost n dimension, its columns the
  // innermost k dimension, along which A has the stride a.
  void add_fold(Fold fold, int64_t size, int64_t row, int64_t col, int64_t a, int64_t c);

  void set_dtype_a(Dtype dtype) { op_.dtype_a = dtype; }
  void set_dtype_c(Dtype dtype) { op_.dtype_c = dtype; }
  void intermediate_a() { op_.dtype_a = call_.intermediate_dtype(); }
  void intermediate_b() { op_.dtype_b = call_.intermediate_dtype(); }
  void intermediate_c() { op_.dtype_c = call_.intermediate_dtype(); }
  void set_scale(double scale) { op_.scale = scale; }

  // Runs the kernel. C must have at least one element.
  void run();

 private:
  const Call& call_;
  Contraction op_;  // 13 kB: its lists are filled in place, never copied
  ContractionDim fold_n_, fold_k_;
  bool empty_k_ = false;
};

// The product of three operands with one kernel call (A times S made on the way in), or by way of
// an intermediate product of two of them, whichever takes fewer multiply-adds.
struct TripleProduct {
  Factor a, s, b;
  void* c;
  DimList<LoopDim> dims;

  TripleProduct(Factor a, Factor s, Factor b, void* c) : a(a), s(s), b(b), c(c) {}
  void add(const LoopDim& dim) {
    if (dim.size != 1) dims.push(dim);
  }
};

enum class Fused { kAllowed, kNever };

void run(const Call& call, const TripleProduct& product, Fused fused);

// Zeros: an empty sum.
void fill_zeros(const Call& call, const Result& result);

// c = sum of x over the dimensions that c lacks.
void run_sum(const Call& call, const DimList<LoopDim>& dims, const void* x, void* c);

// Orders dimensions by `key` (the largest first, so that the innermost is last) and merges
// neighbours that every stride in `strides` steps through as one.
template <class Dim, class Key>
void order_and_merge(DimList<Dim>& dims, Key key, std::initializer_list<int64_t Dim::*> strides) {
  if (dims.count < 2) return;
  for (int i = 1; i < dims.count; ++i) {  // insertion sort: stable, and lists are short
    const Dim moved = dims[i];
    int j = i;
    for (; j > 0 && key(dims[j - 1]) < key(moved); --j) dims[j] = dims[j - 1];
    dims[j] = moved;
  }
  int last = 0;
  for (int i = 1; i < dims.count; ++i) {
    Dim& outer = dims[last];
    const Dim& inner = dims[i];
    bool merge = true;
    for (int64_t Dim::* stride : strides) {
      merge = merge && outer.*stride == inner.size * (inner.*stride);
    }
    int64_t size;
    if (merge && !__builtin_mul_overflow(outer.size, inner.size, &size)) {
      const Dim merged = inner;
      outer = merged;
      outer.size = size;
    } else {
      dims[++last] = inner;
    }
  }
  dims.count = last + 1;
}

}  // namespace matcalc
