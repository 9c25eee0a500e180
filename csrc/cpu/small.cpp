// Small products: one kernel call for a run of the batch, from operands as they lie.
#include "small.h"

#include <algorithm>
#include <cstdint>

#include "../offsets.h"
#include "ahead.h"
#include "gemm.h"
#include "parallel.h"

namespace matcalc::cpu {
namespace {

using Dim = ContractionDim;

// Up to which size a product takes less time from its operands as they lie than by the other paths
// (measured with 4 to 100000 rows and in batches of 1000; 1000 products of 4 x 4 in float32: 6 us,
// not 69). Elements of 16 bits are widened one by one on the way, so that it pays less for them.
//
// A product with few columns, or rows, takes the path of the vectors otherwise, one of bfloat16
// that of the pairs, which add in other orders: there the other dimension, from nine on, has no
// say.
constexpr int64_t kCols = 32, kFew = 4, kUnderNine = 8, kElements = 256;
struct Limits {
  int64_t cols;
  int64_t depth;     // with few columns
  int64_t elements;  // of B with more, for up to `rows` rows
  int64_t rows;
  int64_t any_elements;  // the same for any number of rows
};
constexpr Limits kReal = {kCols, 16, kElements, 1024, 64};
constexpr Limits kComplex = {kCols, 8, kElements, 0, kElements};
constexpr Limits kFloat16 = {kCols, 4, 144, 16, 0};
constexpr Limits kBFloat16 = {kUnderNine, 8, kElements, kUnderNine, 0};
// A B whose columns are not contiguous is gathered: to make up for it, it meets so many rows or has
// so few elements.
constexpr int64_t kGatheringRows = 4, kGatheredAtOnce = 64;
// What an item costs before its first multiply-add, in multiply-adds.
constexpr int64_t kStart = 256;
// From so many rows on, an item is shared out between threads.
constexpr int64_t kManyRows = 64;
// Items of fewer bytes are so near each other that the processor sees the next ones coming.
constexpr int64_t kFarApart = 1024;

const Limits& limits(Dtype dtype) {
  if (dtype == Dtype::kBFloat16) return kBFloat16;
  if (dtype == Dtype::kFloat16) return kFloat16;
  return is_complex(dtype) ? kComplex : kReal;
}

bool is_small(const Contraction& op) {
  const bool plain = op.s == nullptr && op.fold == Fold::kNone && op.scale == 1 &&
                     op.dtype_a == op.dtype && op.dtype_b == op.dtype && op.dtype_c == op.dtype;
  const bool read = op.bias == nullptr || op.bias_stride == 1 || op.n.numel() == 1;  // the bias
  if (!plain || !read || op.k.count != 1 || op.m.count > 1 || op.n.count > 1) return false;
  const Limits& most = limits(op.dtype);
  const int64_t rows = op.m.numel(), cols = op.n.numel(), depth = op.k[0].size;
  if (cols > (rows <= kFew ? kUnderNine : most.cols)) return false;
  if (depth > kSmallDepth || depth == 0) return false;
  const int64_t elements = rows <= most.rows ? most.elements : most.any_elements;
  if (cols <= kFew ? depth > most.depth : cols * depth > elements) return false;
  if (cols == 1) return true;
  const bool gathered = op.n[0].b != 1;
  return op.n[0].c == 1 && (!gathered || rows >= kGatheringRows || cols * depth <= kGatheredAtOnce);
}

auto small_kernel(Dtype dtype) {
  switch (dtype) {
    case Dtype::kFloat64:
      return gemm_kernels<double>().small;
    case Dtype::kComplex64:
      return gemm_kernels<Complex<float>>().small;
    case Dtype::kComplex128:
      return gemm_kernels<Complex<double>>().small;
    default:
      return gemm_kernels<float>().small;
  }
}

void run(const Contraction& op) {
  SmallProducts p{};
  p.rows = op.m.numel();
  p.cols = op.n.numel();
  p.depth = op.k[0].size;
  p.a_row = step_of(op.m, &Dim::a);
  p.a_col = op.k[0].a;
  p.b_row = op.k[0].b;
  p.b_col = op.n.count == 0 ? 1 : op.n[0].b;
  p.c_row = step_of(op.m, &Dim::c);
  p.bias = op.bias;
  p.conj_a = op.conj_a;
  p.conj_b = op.conj_b;
  const Dim inner = innermost(op.batch);
  p.a_step = inner.a;
  p.b_step = inner.b;
  p.c_step = inner.c;
  const auto kernel = small_kernel(op.dtype);
  const int64_t size = dtype_size(op.dtype), items = op.batch.numel();
  const Ahead ahead(items, small_span(p.rows, p.a_row, p.depth, p.a_col, size),
                    small_span(p.depth, p.b_row, p.cols, p.b_col, size),
                    small_span(p.rows, p.c_row, p.cols, 1, size));
  const bool far_apart = ahead.bytes() >= kFarApart;
  const auto at = [&](const void* data, int64_t Dim::* stride, int64_t item) {
    return static_cast<const char*>(data) + offset_of(op.batch, stride, item) * size;
  };
  const auto compute = [&](SmallProducts run, int64_t item, int64_t row) {
    run.a = at(op.a, &Dim::a, item) + row * p.a_row * size;
    run.b = at(op.b, &Dim::b, item);
    run.c = const_cast<char*>(at(op.c, &Dim::c, item)) + row * p.c_row * size;
    kernel(op.dtype, run);
  };

  const int64_t work = kStart + p.rows * p.cols * p.depth;
  if (p.rows > kManyRows) {  // shared out by rows
    const int64_t parts = ceil_div(p.rows, kManyRows);
    parallel_for(0, items * parts, std::max<int64_t>(1, 2 * kInlineWork / (work / parts)),
                 [&](int64_t first, int64_t last) {
                   while (first < last) {
                     const int64_t item = first / parts, begin = item * parts;
                     const int64_t end = std::min(last, begin + parts);
                     const int64_t row = (first - begin) * kManyRows;
                     SmallProducts rows = p;
                     rows.count = 1;
                     rows.rows = std::min(p.rows, (end - begin) * kManyRows) - row;
                     compute(rows, item, row);
                     first = end;
                   }
                 });
    return;
  }
  parallel_for(
      0, items, std::max<int64_t>(1, 2 * kInlineWork / work), [&](int64_t first, int64_t last) {
        SmallProducts run = p;
        for (; first < last; first += run.count) {
          // Along the innermost dimension of the batch.
          run.count = std::min(last - first, inner.size - first % inner.size);
          if (far_apart) {
            run.count = 1;  // more at a time ask for more lines at once than can be on their way
            if (const int64_t i = first + Ahead::kItems; i < last) {
              ahead.fetch_item(at(op.a, &Dim::a, i), at(op.b, &Dim::b, i), at(op.c, &Dim::c, i));
            }
          }
          compute(run, first, 0);
        }
      });
}

}  // namespace

bool contract_small(const Contraction& op) {
  const bool column = op.n.count == 0 && op.m.count > 0 && op.m[op.m.count - 1].c == 1;
  if (column ? innermost(op.m).size > kUnderNine : innermost(op.n).size > kCols) return false;
  if (!column && op.m.count <= 1 && op.n.count <= 1) {
    if (!is_small(op)) return false;
    run(op);
    return true;
  }
  Contraction items = op;  // what several items of a batch share is a matrix of each
  split_outer(items.m, items.batch);
  split_outer(items.n, items.batch);
  if (column) transpose(items);  // the kernel goes along the columns of C
  if (!is_small(items)) return false;
  run(items);
  return true;
}

}  // namespace matcalc::cpu
