#include "contraction.h"

#include <cmath>

namespace matcalc {
namespace {

using Strides = std::initializer_list<int64_t ContractionDim::*>;

int64_t by_c(const ContractionDim& dim) { return dim.c; }
// Packing and dot products walk k: along B first, for B is the operand that is read most often.
int64_t by_b(const ContractionDim& dim) { return dim.b != 0 ? dim.b : dim.a; }

}  // namespace

ContractionBuilder::ContractionBuilder(const Call& call, Factor a, Factor s, Factor b, void* c)
    : call_(call) {
  op_.dtype = op_.dtype_a = op_.dtype_b = op_.dtype_c = call.dtype;
  op_.a = a.data;
  op_.s = s.data;
  op_.b = b.data;
  op_.bias = nullptr;
  op_.c = c;
  op_.bias_stride = 0;
  const bool complex = is_complex(op_.dtype);  // of real numbers a conjugate is the number
  op_.conj_a = complex && a.conj;
  op_.conj_s = complex && s.conj;
  op_.conj_b = complex && b.conj;
  op_.fold = Fold::kNone;
  op_.scale = 1;
  op_.device = call.device_index;
}

void ContractionBuilder::add(const LoopDim& dim) {
  if (dim.size == 1) return;
  const ContractionDim item = {dim.size, dim.a, dim.s, dim.b, dim.b, dim.c};
  if (dim.c == 0) {
    empty_k_ = empty_k_ || dim.size == 0;
    op_.k.push(item);
  } else if (dim.b == 0) {
    op_.m.push(item);  // also where no input runs along it and C repeats itself
  } else if (dim.a == 0 && dim.s == 0) {
    op_.n.push(item);
  } else {
    op_.batch.push(item);
  }
}

void ContractionBuilder::add_bias(const void* bias, int64_t bias_stride, int64_t size, int64_t b,
                                  int64_t c) {
  op_.bias = bias;
  op_.bias_stride = bias_stride;
  op_.n.push({size, 0, 0, b, b, c});
}

void ContractionBuilder::add_fold(Fold fold, int64_t size, int64_t row, int64_t col, int64_t a,
                                  int64_t c) {
  op_.fold = fold;
  fold_n_ = {size, 0, 0, row, col, c};
  fold_k_ = {size, a, 0, col, row, 0};
}

void ContractionBuilder::run() {
  const Strides strides = {&ContractionDim::a, &ContractionDim::s, &ContractionDim::b,
                           &ContractionDim::c};
  order_and_merge(op_.batch, by_c, strides);
  order_and_merge(op_.m, by_c, strides);
  order_and_merge(op_.n, by_c, strides);
  if (op_.fold != Fold::kNone) op_.n.push(fold_n_);
  if (empty_k_) {
    op_.fold = Fold::kNone;
    op_.k.count = 0;
    op_.k.push({0, 0, 0, 0, 0, 0});
  } else {
    order_and_merge(op_.k, by_b, strides);
    if (op_.fold != Fold::kNone) op_.k.push(fold_k_);
  }
  call_.kernels->contract(op_);
}

namespace {

// Which of the three operands the intermediate product is made of; the third joins it afterwards.
struct Pair {
  int64_t LoopDim::* first;
  int64_t LoopDim::* second;
  int64_t LoopDim::* third;
};

constexpr Pair kPairs[] = {
    {&LoopDim::a, &LoopDim::b, &LoopDim::s},
    {&LoopDim::s, &LoopDim::b, &LoopDim::a},
    {&LoopDim::a, &LoopDim::s, &LoopDim::b},
};

// The intermediate product runs along a dimension of its two operands unless that is summed over
// before the third operand comes in.
bool in_pair(const Pair& pair, const LoopDim& dim) {
  return dim.*pair.first != 0 || dim.*pair.second != 0;
}
bool in_intermediate(const Pair& pair, const LoopDim& dim) {
  return in_pair(pair, dim) && (dim.c != 0 || dim.*pair.third != 0);
}
// Dimensions that no operand runs along count a factor, once.
bool in_second(const Pair& pair, const LoopDim& dim) {
  return !in_pair(pair, dim) || in_intermediate(pair, dim);
}

// Multiply-adds, in floating point: the product of the sizes need not fit 64 bits.
double cost(const Pair& pair, const DimList<LoopDim>& dims) {
  double first = 1, second = 1;
  for (const LoopDim& dim : dims) {
    if (in_pair(pair, dim)) first *= static_cast<double>(dim.size);
    if (in_second(pair, dim)) second *= static_cast<double>(dim.size);
  }
  return first + second;
}

void run_fused(const Call& call, const TripleProduct& product) {
  ContractionBuilder builder(call, product.a, product.s, product.b, product.c);
  for (const LoopDim& dim : product.dims) builder.add(dim);
  builder.run();
}

void run_staged(const Call& call, const TripleProduct& product, const Pair& pair) {
  const auto factor = [&](int64_t LoopDim::* operand) {
    return operand == &LoopDim::a ? product.a : operand == &LoopDim::s ? product.s : product.b;
  };
  Dims kept;
  for (const LoopDim& dim : product.dims) {
    if (in_intermediate(pair, dim)) kept.push(dim.size);
  }
  Result t = call.intermediate(kept);
  ContractionBuilder first(call, factor(pair.first), {}, factor(pair.second), t.data);
  ContractionBuilder second(call, {t.data}, {}, factor(pair.third), product.c);
  first.intermediate_c();
  second.intermediate_a();
  int64_t index = 0;
  for (const LoopDim& dim : product.dims) {
    const int64_t stride = in_intermediate(pair, dim) ? t.strides[index++] : 0;
    if (in_pair(pair, dim)) {
      first.add({.size = dim.size, .a = dim.*pair.first, .b = dim.*pair.second, .c = stride});
    }
    if (in_second(pair, dim))
      second.add({.size = dim.size, .a = stride, .b = dim.*pair.third, .c = dim.c});
  }
  if (t.numel != 0) first.run();
  second.run();
}

}  // namespace

void run(const Call& call, const TripleProduct& product, Fused fused) {
  const Pair* best = nullptr;
  double least = HUGE_VAL;
  if (fused == Fused::kAllowed) {
    least = 1;
    for (const LoopDim& dim : product.dims) least *= static_cast<double>(dim.size);
  }
  for (const Pair& pair : kPairs) {
    const double count = cost(pair, product.dims);
    if (count < least) {
      least = count;
      best = &pair;
    }
  }
  if (best == nullptr) {
    run_fused(call, product);
  } else {
    run_staged(call, product, *best);
  }
}

void fill_zeros(const Call& call, const Result& result) {
  ContractionBuilder builder(call, {}, {}, {}, result.data);
  builder.add({.size = result.numel, .c = 1});
  builder.add({.size = 0});
  builder.run();
}

void run_sum(const Call& call, const DimList<LoopDim>& dims, const void* x, void* c) {
  ContractionBuilder builder(call, {}, {}, {x}, c);
  for (const LoopDim& dim : dims) builder.add(dim);
  builder.run();
}

}  // namespace matcalc
