#include "shared_forms.h"

#include <algorithm>
#include <utility>

namespace matcalc {
namespace {

// The rows of an operand one after the other, in the dtype of intermediate products if asked for:
// the operand itself where that is how it is stored, else a copy.
class DenseRows {
 public:
  DenseRows(const Call& call, const void* data, const DimList<LoopDim>& rows,
            int64_t LoopDim::* stride, int64_t entries, int64_t entry_stride, bool intermediate)
      : data_(data), dtype_(intermediate ? call.intermediate_dtype() : call.dtype) {
    bool dense = dtype_ == call.dtype && (entries == 1 || entry_stride == 1);
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

const void* half(Dtype dtype) {
  static const double float64[] = {0.5, 0};  // complex128 too
  static const float float32[] = {0.5f, 0};  // complex64 too
  return dtype_size(dtype) == 16 || dtype == Dtype::kFloat64 ? static_cast<const void*>(float64)
                                                             : float32;
}

}  // namespace

// By way of the matrices V of the rows' forms x1^T V x2:
//
//   V[b, i, j] = sum_o conj(g[b, o]) W[o, i, j]                              a matrix product
//   dx1[b, i] = conj(sum_j V x2[b, j]),  dx2[b, j] = conj(sum_i V x1[b, i])  one pass over V
//
// That is one matrix product instead of two, without an operand to generate; of a symmetric W only
// the blocks up to the diagonal. V is made for some rows and some i at a time, so that it stays in
// the cache. How many i follows from the shape of W alone: dx2 is summed over them, and must not
// depend on the rows beside its own.
void run_input_gradients(const Call& call, const SharedForms& forms, const void* g, void* dx1,
                         void* dx2) {
  constexpr int64_t kItemEntries = 4096;          // of V for one row: half of L1
  constexpr int64_t kCachedEntries = 512 * 1024;  // of V
  constexpr int64_t kLeastRows = 64;              // they share the packing of W
  constexpr int64_t kMostParts = 16;              // of i: the partial sums of dx2 in memory
  const int64_t in1 = forms.in1, in2 = forms.in2, out = forms.out, rows = forms.row_count();
  const Dtype narrow = call.dtype, wide = call.intermediate_dtype();
  const int64_t part =
      std::min(in1, std::max(kItemEntries / in2, (in1 + kMostParts - 1) / kMostParts));
  const int64_t parts = (in1 + part - 1) / part;
  const int64_t together = std::min(rows, std::max(kLeastRows, kCachedEntries / (part * in2)));

  const DenseRows x1_rows(call, forms.x1, forms.rows, &LoopDim::a, in1, forms.x1_i, true);
  const DenseRows x2_rows(call, forms.x2, forms.rows, &LoopDim::s, in2, forms.x2_j, true);
  const DenseRows g_rows(call, g, forms.rows, &LoopDim::c, out, forms.z_o, false);
  const Result v = call.intermediate({together, part, in2});
  // Sums that are no results yet: the parts of dx2, then dx1, each of the rows in hand.
  const bool one = dx2 == nullptr, p_kept = one || wide != narrow, q_kept = p_kept || parts > 1;
  const Result sums =
      q_kept ? call.intermediate({parts * in2 + (p_kept ? in1 : 0), together}) : Result();
  for (int64_t b = 0; b < rows; b += together) {
    const int64_t count = std::min(together, rows - b);
    void* dx1_rows = shifted(dx1, b * in1, narrow);
    void* dx2_rows = one ? dx1_rows : shifted(dx2, b * in2, narrow);
    void* p = p_kept ? shifted(sums.data, parts * count * in2, wide) : dx1_rows;
    void* q = q_kept ? sums.data : dx2_rows;
    for (int64_t i = 0; i < in1; i += part) {
      const int64_t height = std::min(part, in1 - i), width = forms.symmetric ? i + height : in2;
      ContractionBuilder product(call, {g_rows.from(b * out), true}, {},
                                 {shifted(forms.w, i * forms.w_i, narrow)}, v.data);
      product.intermediate_c();
      product.add({.size = count, .a = out, .c = height * width});
      product.add({.size = height, .b = forms.w_i, .c = width});
      product.add({.size = width, .b = forms.w_j, .c = 1});
      product.add({.size = out, .a = 1, .b = forms.w_o});
      product.run();

      // Of a symmetric W the block on the diagonal is a form of its own.
      Form form{};
      form.dtype = form.dtype_d = wide;
      form.rows = height;
      form.cols = forms.symmetric ? i : in2;
      form.a_row = width;
      form.y = x1_rows.from(b * in1 + i);
      form.a = v.data;
      form.x = x2_rows.from(b * in2);
      form.y_stride = form.a_col = form.x_stride = form.dy_stride = form.dx_stride = 1;
      form.dy = shifted(p, i, wide);
      form.dx = shifted(q, i / part * count * in2, wide);
      form.device = call.device_index;
      form.batch.push({.size = count,
                       .y = in1,
                       .a = height * width,
                       .x = in2,
                       .g = 0,
                       .alpha = 0,
                       .dy = in1,
                       .da = 0,
                       .dx = in2});
      if (form.cols != 0) call.kernels->form(form);
      if (forms.symmetric) {
        form.quadratic = form.symmetric = true;
        form.cols = height;
        form.a = shifted(v.data, i, wide);
        form.x = form.y;
        if (parts > 1) form.g = half(wide);  // the sum is doubled
        form.dy = nullptr;
        form.dx = shifted(form.dx, i, wide);
        call.kernels->form(form);
      }
    }
    if (p_kept && !one) {
      ContractionBuilder rounding(call, {}, {}, {p}, dx1_rows);
      rounding.intermediate_b();
      rounding.add({.size = count * in1, .b = 1, .c = 1});
      rounding.run();
    }
    // The columns of a part of a symmetric W get sums from it and the parts below it, and, from the
    // second part on, of the rows left of the diagonal block.
    const int64_t columns = forms.symmetric ? part : in2;
    for (int64_t j = 0; q_kept && j < in2; j += columns) {
      const int64_t first = j / columns;
      const bool with_p = forms.symmetric ? j > 0 : one;
      ContractionBuilder sum(call, {}, {}, {shifted(q, first * count * in2 + j, wide)},
                             shifted(dx2_rows, j, narrow));
      sum.intermediate_b();
      sum.add({.size = count, .b = in2, .c = in2});
      sum.add({.size = std::min(columns, in2 - j), .b = 1, .c = 1});
      sum.add({.size = parts - first + (with_p ? 1 : 0), .b = count * in2});
      if (forms.symmetric && parts > 1) sum.set_scale(2);
      sum.run();
    }
  }
}

}  // namespace matcalc
