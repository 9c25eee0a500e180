#include "shared_forms.h"

#include <algorithm>
#include <utility>

namespace matcalc {
namespace {

// The rows of an operand one after the other, times `scale`, in the dtype of intermediate products
// if asked for: the operand itself where that is how it is stored, else a copy.
class DenseRows {
 public:
  DenseRows(const Call& call, const void* data, const DimList<LoopDim>& rows,
            int64_t LoopDim::* stride, int64_t entries, int64_t entry_stride, bool intermediate,
            double scale = 1)
      : data_(data), dtype_(intermediate ? call.intermediate_dtype() : call.dtype) {
    bool dense = scale == 1 && dtype_ == call.dtype && (entries == 1 || entry_stride == 1);
    int64_t step = entries;
    for (int d = rows.count - 1; d >= 0; step *= rows[d--].size) {
      dense = dense && rows[d].*stride == step;
    }
    if (dense) return;
    const Dims dims{rows.numel(), entries};
    copy_ = intermediate ? call.intermediate(dims) : call.empty(dims);
    data_ = copy_.data;
    ContractionBuilder builder(call, {}, {}, {data}, copy_.data);
    if (intermediate) builder.intermediate_c();
    builder.set_scale(scale);
    builder.add({.size = entries, .b = entry_stride, .c = 1});
    step = entries;
    for (int d = rows.count - 1; d >= 0; step *= rows[d--].size) {
      builder.add({.size = rows[d].size, .b = rows[d].*stride, .c = step});
    }
    builder.run();
  }
  const void* from(int64_t element) const { return shifted(data_, element, dtype_); }

 private:
  const void* data_;
  Dtype dtype_;
  Result copy_;
};

// T[b, o, j] = sum_i x1[b, i] W[o, i, j], z[b, o] = sum_j T x2[b, j] + bias[o], for so many outputs
// at a time as T has room for: one call for each output would be mostly its start.
void run_values_of_rows(const Call& call, const SharedForms& forms, const Operand* bias, void* z,
                        const Result& t) {
  const int64_t in2 = forms.in2, together = t.sizes[1];
  for (int64_t o = 0; o < forms.out; o += together) {
    const int64_t count = std::min(together, forms.out - o);
    ContractionBuilder first(call, {forms.x1}, {}, {shifted(forms.w, o * forms.w_o, call.dtype)},
                             t.data);
    ContractionBuilder second(call, {forms.x2}, {}, {t.data},
                              shifted(z, o * forms.z_o, call.dtype));
    first.intermediate_c();
    second.intermediate_b();
    int64_t t_row = together * in2;
    for (int d = forms.rows.count - 1; d >= 0; t_row *= forms.rows[d--].size) {
      const LoopDim& row = forms.rows[d];
      first.add({.size = row.size, .a = row.a, .c = t_row});
      second.add({.size = row.size, .a = row.s, .b = t_row, .c = row.c});
    }
    first.add({.size = count, .b = forms.w_o, .c = in2});
    if (forms.symmetric) {
      first.add_fold(Fold::kSymmetric, in2, forms.w_i, forms.w_j, forms.x1_i, 1);
    } else {
      first.add({.size = in2, .b = forms.w_j, .c = 1});
      first.add({.size = forms.in1, .a = forms.x1_i, .b = forms.w_i});
    }
    if (bias != nullptr) {
      second.add_bias(shifted(bias->data, o * bias->stride(1), call.dtype), bias->stride(1), count,
                      in2, forms.z_o);
    } else {
      second.add({.size = count, .b = in2, .c = forms.z_o});
    }
    second.add({.size = in2, .a = forms.x2_j, .b = 1});
    first.run();
    second.run();
  }
}

// The same forms x2^T W^T x1.
SharedForms turned(const SharedForms& forms) {
  SharedForms other = forms;
  std::swap(other.x1, other.x2);
  std::swap(other.in1, other.in2);
  std::swap(other.x1_i, other.x2_j);
  std::swap(other.w_i, other.w_j);
  for (int d = 0; d < other.rows.count; ++d) std::swap(other.rows[d].a, other.rows[d].s);
  return other;
}

}  // namespace

// Some rows at a time: T stays in the cache (of a GPU: within 64 MiB), and the outputs in hand are
// about as many for any number of rows.
void run_values(const Call& call, const SharedForms& forms, const Operand* bias, void* z) {
  const bool cached = call.kernels->calls_are_cheap;
  const int64_t most_rows = cached ? 512 : 1 << 14, entries = cached ? 1 << 19 : 1 << 24;
  // T is written and read once more, and is as wide as x2, better the narrower one. (x1 is then
  // what a bias does not let be repeated along rows.)
  bool turn = cached && 2 * forms.in1 <= forms.in2;
  for (int d = 0; bias != nullptr && d < forms.rows.count; ++d) {
    turn = turn && forms.rows[d].a != 0;
  }
  SharedForms some = turn ? turned(forms) : forms;
  order_and_merge(some.rows, [](const LoopDim& row) { return row.c; },
                  {&LoopDim::a, &LoopDim::s, &LoopDim::c});
  int64_t outer = 1, step = 1;  // the outermost dimension of the rows, and how much of it at a time
  if (some.rows.count > 0) {
    outer = some.rows[0].size;
    step = std::clamp<int64_t>(most_rows * outer / some.row_count(), 1, outer);
    some.rows[0].size = step;
  }
  const int64_t rows = some.row_count();
  const int64_t together = std::clamp<int64_t>(entries / (rows * some.in2), 1, some.out);
  const Result t = call.intermediate({rows, together, some.in2});
  const void *x1 = some.x1, *x2 = some.x2;
  for (int64_t first = 0; first < outer; first += step) {
    const LoopDim row = some.rows.count > 0 ? some.rows[0] : LoopDim{};
    some.x1 = shifted(x1, first * row.a, call.dtype);
    some.x2 = shifted(x2, first * row.s, call.dtype);
    if (first + step > outer) some.rows[0].size = outer - first;
    run_values_of_rows(call, some, bias, shifted(z, first * row.c, call.dtype), t);
  }
}

bool generated_by_tiles(const Call& call, int64_t in1, int64_t in2) {
  return call.kernels->tiles != nullptr && call.kernels->tiles(call.dtype) && in1 % kTileRun == 0 &&
         in2 % kTileRun == 0;
}

// The way of run_input_gradients costs the way of V through the cache, and saves of a product of
// `out` multiply-adds an entry of V
//
//   for two gradients      one of two products and the generation of their operands
//   for the sum of both    the generation of an operand, and of a symmetric W that is no small
//                          matrix three eighths of the product
//
// From how many outputs on it is the faster one was measured with 1 to 2048 rows, 4 to 256 inputs
// and 2 to 128 outputs. Elements of 16 bits save less where there are two products, as bfloat16 is
// multiplied in pairs, and more where there is one, as those of a fold are not. Beside products by
// tiles the pass over V weighs more.
bool input_gradients_pay(const Call& call, const SharedForms& forms, bool one) {
  if (!call.kernels->calls_are_cheap) return false;
  const int64_t entries = forms.in1 * forms.in2;
  const bool low = dtype_size(call.dtype) == 2;
  if (!one && generated_by_tiles(call, forms.in1, forms.in2)) {
    return forms.out >= (entries > 64 * 64 ? 128 : 64);
  }
  if (!one) return forms.out >= (low && entries > 32 * 32 ? 16 : 8);
  const bool half = forms.symmetric && entries >= 128 * 128;
  return forms.out >= (low || half || is_complex(call.dtype) ? 16 : 24);
}

namespace {

// By way of the matrices V of the rows' forms x1^T V x2:
//
//   V[b, i, j] = sum_o conj(g[b, o]) W[o, i, j]                              a matrix product
//   dx1[b, i] = conj(sum_j V x2[b, j]),  dx2[b, j] = conj(sum_i V x1[b, i])  one pass over V
//
// That is one matrix product instead of two, without an operand to generate; of a symmetric W only
// the blocks up to the diagonal. V is made for some rows and some i at a time, so that it stays in
// the cache. How many i follows from the shape of W alone: dx2 is summed over them, and must not
// depend on the rows beside its own.
class InputGradients {
 public:
  InputGradients(const Call& call, const SharedForms& forms, const void* g, void* dx1, void* dx2)
      : call_(call),
        forms_(forms),
        narrow_(call.dtype),
        wide_(call.intermediate_dtype()),
        part_(std::min(forms.in1, std::max(kItemEntries / forms.in2,
                                           (forms.in1 + kMostParts - 1) / kMostParts))),
        parts_((forms.in1 + part_ - 1) / part_),
        together_(std::min(forms.row_count(),
                           std::max(kLeastRows, kCachedEntries / (part_ * forms.in2)))),
        one_(dx2 == nullptr),
        p_kept_(one_ || wide_ != narrow_),
        q_kept_(p_kept_ || parts_ > 1),
        x1_(call, forms.x1, forms.rows, &LoopDim::a, forms.in1, forms.x1_i, true),
        x2_(call, forms.x2, forms.rows, &LoopDim::s, forms.in2, forms.x2_j, true),
        g_(call, g, forms.rows, &LoopDim::c, forms.out, forms.z_o, false),
        v_(call.intermediate({together_, part_, forms.in2})),
        dx1_(dx1),
        dx2_(one_ ? dx1 : dx2) {
    if (q_kept_) {
      const int64_t entries = parts_ * forms.in2 + (p_kept_ ? forms.in1 : 0);
      sums_ = call.intermediate({entries, together_});
    }
    if (forms.symmetric && parts_ > 1) {
      halves_.emplace(call, forms.x1, forms.rows, &LoopDim::a, forms.in1, forms.x1_i, true, 0.5);
    }
  }

  void run() {
    for (int64_t row = 0; row < forms_.row_count(); row += together_) {
      const int64_t count = std::min(together_, forms_.row_count() - row);
      void* const dx1 = shifted(dx1_, row * forms_.in1, narrow_);
      void* const dx2 = shifted(dx2_, row * forms_.in2, narrow_);
      void* const q = q_kept_ ? sums_.data : dx2;
      void* const p = p_kept_ ? shifted(q, parts_ * count * forms_.in2, wide_) : dx1;
      for (int64_t i = 0; i < forms_.in1; i += part_) {
        const int64_t height = std::min(part_, forms_.in1 - i);
        const int64_t width = forms_.symmetric ? i + height : forms_.in2;
        make_matrices(row, count, i, height, width);
        multiply(row, count, i, height, width, p,
                 shifted(q, i / part_ * count * forms_.in2, wide_));
      }
      if (p_kept_ && !one_) round(p, count * forms_.in1, dx1);
      if (q_kept_) add_parts(q, count, dx2);
    }
  }

 private:
  static constexpr int64_t kItemEntries = 4096;          // of V for one row: half of L1
  static constexpr int64_t kCachedEntries = 512 * 1024;  // of V
  static constexpr int64_t kLeastRows = 64;              // they share the packing of W
  static constexpr int64_t kMostParts = 16;              // of i: the partial sums of dx2 in memory

  // V for `count` rows, of i ... i + height.
  void make_matrices(int64_t row, int64_t count, int64_t i, int64_t height, int64_t width) {
    const int64_t out = forms_.out;
    ContractionBuilder product(call_, {g_.from(row * out), true}, {},
                               {shifted(forms_.w, i * forms_.w_i, narrow_)}, v_.data);
    product.intermediate_c();
    product.add({.size = count, .a = out, .c = height * width});
    product.add({.size = height, .b = forms_.w_i, .c = width});
    product.add({.size = width, .b = forms_.w_j, .c = 1});
    product.add({.size = out, .a = 1, .b = forms_.w_o});
    product.run();
  }

  // p[i ... i + height] = V x2 and q = V^T x1. Of a symmetric W the block on the diagonal is a form
  // of its own, q = 2 V x1, or, where the sum of the parts is doubled in the end, of x1 / 2.
  void multiply(int64_t row, int64_t count, int64_t i, int64_t height, int64_t width, void* p,
                void* q) {
    const int64_t in1 = forms_.in1, in2 = forms_.in2;
    Form form{};
    form.dtype = form.dtype_d = wide_;
    form.rows = height;
    form.cols = forms_.symmetric ? i : in2;
    form.a_row = width;
    form.y = x1_.from(row * in1 + i);
    form.a = v_.data;
    form.x = x2_.from(row * in2);
    form.y_stride = form.a_col = form.x_stride = form.dy_stride = form.dx_stride = 1;
    form.dy = shifted(p, i, wide_);
    form.dx = q;
    form.device = call_.device_index;
    form.batch.push({.size = count,
                     .y = in1,
                     .a = height * width,
                     .x = in2,
                     .g = 0,
                     .alpha = 0,
                     .dy = in1,
                     .da = 0,
                     .dx = in2});
    if (form.cols != 0) call_.kernels->form(form);
    if (!forms_.symmetric) return;
    form.quadratic = form.symmetric = true;
    form.cols = height;
    form.a = shifted(v_.data, i, wide_);
    form.x = form.y = (halves_.has_value() ? *halves_ : x1_).from(row * in1 + i);
    form.dy = nullptr;
    form.dx = shifted(q, i, wide_);
    call_.kernels->form(form);
  }

  void round(const void* p, int64_t size, void* dx1) {
    ContractionBuilder rounding(call_, {}, {}, {p}, dx1);
    rounding.intermediate_b();
    rounding.add({.size = size, .b = 1, .c = 1});
    rounding.run();
  }

  // dx2 = the sum of q over the parts, and of p where dx1 is dx2. The columns of a part of a
  // symmetric W get sums from it and the parts below it, and, from the second part on, of the rows
  // left of the diagonal block.
  void add_parts(const void* q, int64_t count, void* dx2) {
    const int64_t in2 = forms_.in2, columns = forms_.symmetric ? part_ : in2;
    for (int64_t j = 0; j < in2; j += columns) {
      const int64_t first = j / columns;
      const bool with_p = forms_.symmetric ? j > 0 : one_;
      ContractionBuilder sum(call_, {}, {}, {shifted(q, first * count * in2 + j, wide_)},
                             shifted(dx2, j, narrow_));
      sum.intermediate_b();
      sum.add({.size = count, .b = in2, .c = in2});
      sum.add({.size = std::min(columns, in2 - j), .b = 1, .c = 1});
      sum.add({.size = parts_ - first + (with_p ? 1 : 0), .b = count * in2});
      if (halves_.has_value()) sum.set_scale(2);
      sum.run();
    }
  }

  const Call& call_;
  const SharedForms& forms_;
  const Dtype narrow_, wide_;
  const int64_t part_, parts_;  // of i: how many at a time
  const int64_t together_;      // rows in hand
  const bool one_;              // the sum of both gradients is asked for
  // Whether sums are kept that are no results yet: dx1 of the rows in hand, and the parts of dx2.
  const bool p_kept_, q_kept_;
  const DenseRows x1_, x2_, g_;
  std::optional<DenseRows> halves_;  // of x1, for the diagonal blocks of a symmetric W
  const Result v_;
  Result sums_;  // q, then p
  void *const dx1_, *const dx2_;
};

}  // namespace

void run_input_gradients(const Call& call, const SharedForms& forms, const void* g, void* dx1,
                         void* dx2) {
  InputGradients(call, forms, g, dx1, dx2).run();
}

}  // namespace matcalc
