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
// (1000 products of 4 x 4 to 32 x 32, each dtype; of 4 x 4 in float32: 6 us, not 69). Elements of
// 16 bits are widened one by one on the way, so that it pays less for them.
struct Limits {
  int64_t rows, cols, depth, work, gathered;
};
constexpr Limits kReal = {32, 32, 32, 8192, kSmallGathered};
constexpr Limits kComplex = {32, 32, 16, 8192, kSmallGathered};
constexpr Limits kFloat16 = {32, 32, 16, 2048, 144};
// Of more rows the sum is one of pairs, in another order.
constexpr Limits kBFloat16 = {8, 32, 16, 4096, 144};
// A B whose columns are not contiguous is gathered: to make up for it, it meets so many rows or has
// so few elements.
constexpr int64_t kGatheringRows = 4, kGatheredAtOnce = 64;
// What an item costs before its first multiply-add, in multiply-adds.
constexpr int64_t kStart = 256;
// Items of fewer bytes are so near each other that the processor sees the next ones coming.
constexpr int64_t kFarApart = 1024;

const Limits& limits(Dtype dtype) {
  if (dtype == Dtype::kBFloat16) return kBFloat16;
  if (dtype == Dtype::kFloat16) return kFloat16;
  return is_complex(dtype) ? kComplex : kReal;
}

int64_t step_of(const DimList<Dim>& dims, int64_t Dim::* stride) {
  return dims.count == 0 ? 0 : dims[0].*stride;
}

bool is_small(const Contraction& op) {
  const bool plain = op.s == nullptr && op.bias == nullptr && op.fold == Fold::kNone &&
                     op.scale == 1 && op.dtype_a == op.dtype && op.dtype_b == op.dtype &&
                     op.dtype_c == op.dtype;
  if (!plain || op.k.count != 1 || op.m.count > 1 || op.n.count > 1) return false;
  const Limits& most = limits(op.dtype);
  const int64_t rows = op.m.numel(), cols = op.n.numel(), depth = op.k[0].size;
  if (rows > most.rows || cols > most.cols || depth > most.depth || depth == 0) return false;
  if (rows * cols * depth > most.work || (cols > 1 && op.n[0].c != 1)) return false;
  const int64_t gathered = rows < kGatheringRows ? kGatheredAtOnce : most.gathered;
  return cols == 1 || op.n[0].b == 1 || depth * cols <= gathered;
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
  p.conj_a = op.conj_a;
  p.conj_b = op.conj_b;
  const Dim none{1, 0, 0, 0, 0, 0};
  const Dim& inner = op.batch.count == 0 ? none : op.batch[op.batch.count - 1];
  p.a_step = inner.a;
  p.b_step = inner.b;
  p.c_step = inner.c;
  const bool doubles = op.dtype == Dtype::kFloat64 || op.dtype == Dtype::kComplex128;
  const auto kernel = doubles ? gemm_kernels<double>().small : gemm_kernels<float>().small;
  const int64_t size = dtype_size(op.dtype), items = op.batch.numel();
  const Ahead ahead(items, small_span(p.rows, p.a_row, p.depth, p.a_col, size),
                    small_span(p.depth, p.b_row, p.cols, p.b_col, size),
                    small_span(p.rows, p.c_row, p.cols, 1, size));
  const bool far_apart = ahead.bytes() >= kFarApart;

  const int64_t grain = 2 * kInlineWork / (kStart + p.rows * p.cols * p.depth);
  parallel_for(0, items, grain, [&](int64_t first, int64_t last) {
    const auto at = [&](const void* data, int64_t Dim::* stride, int64_t item) {
      return static_cast<const char*>(data) + offset_of(op.batch, stride, item) * size;
    };
    SmallProducts run = p;
    for (; first < last; first += run.count) {
      // Along the innermost dimension of the batch.
      run.count = std::min(last - first, inner.size - first % inner.size);
      if (far_apart) {
        run.count = std::min(run.count, Ahead::kItems);
        const int64_t end = std::min(last, first + 2 * Ahead::kItems);
        for (int64_t i = first + Ahead::kItems; i < end; ++i) {
          ahead.fetch_item(at(op.a, &Dim::a, i), at(op.b, &Dim::b, i), at(op.c, &Dim::c, i));
        }
      }
      run.a = at(op.a, &Dim::a, first);
      run.b = at(op.b, &Dim::b, first);
      run.c = const_cast<char*>(at(op.c, &Dim::c, first));
      kernel(op.dtype, run);
    }
  });
}

}  // namespace

bool contract_small(const Contraction& op) {
  const auto inner = [](const DimList<Dim>& dims) {
    return dims.count == 0 ? 1 : dims[dims.count - 1].size;
  };
  if (inner(op.m) > kReal.rows || inner(op.n) > kReal.cols) return false;
  const bool column = op.n.count == 0 && op.m.count > 0 && op.m[op.m.count - 1].c == 1;
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
