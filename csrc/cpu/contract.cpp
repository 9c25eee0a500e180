// The contraction's entry: which path a product takes, and how it is shared out between threads.
//
//   dots       one dot product, or one of each item: vector.h
//   small      nothing is read often enough to be moved first: small.h
//   vectors    few columns or rows of C, or no sum at all: vector.h
//   apart      items of a batch that share a small operand, one by one: by these paths in turn
//   blocked    everything else, operands packed or read where they lie: gemm.h
//   integer    whole numbers: integer.h
//
// No path's sums depend on the number of threads, on how C is divided or on the batch.
#include <algorithm>
#include <cstdint>
#include <utility>

#include "../kernels.h"
#include "../offsets.h"
#include "dispatch.h"
#include "gemm.h"
#include "integer.h"
#include "parallel.h"
#include "small.h"
#include "vector.h"

namespace matcalc::cpu {

template <class T>
const GemmKernels<T>& gemm_kernels() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::kAmxBf16:
    case Isa::kAvx512Bf16:
    case Isa::kAvx512:
      return gemm_kernels_avx512(T{});
    case Isa::kAvx2:
      return gemm_kernels_avx2(T{});
#endif
    default:
      return gemm_kernels_scalar(T{});
  }
}

template const GemmKernels<float>& gemm_kernels<float>();
template const GemmKernels<double>& gemm_kernels<double>();
template const GemmKernels<Complex<float>>& gemm_kernels<Complex<float>>();
template const GemmKernels<Complex<double>>& gemm_kernels<Complex<double>>();

namespace {

// Multiply-adds of one item from which its own rows and columns are divided between threads.
constexpr double kSplitWork = 1024 * 1024;

// Whether the product is better computed transposed: the tile wants contiguous columns of C.
bool wants_transpose(const Contraction& op) {
  if (op.s != nullptr || op.fold != Fold::kNone) return false;
  return uniform_step(op.n, &ContractionDim::c, kNoStep) != 1 &&
         uniform_step(op.m, &ContractionDim::c, kNoStep) == 1;
}

// The ranges of rows and columns that each of `threads` threads computes: the grid with the least
// work on the busiest thread, where a row or column also costs its packing. A row costs twice that,
// so that a square is cut between rows: cut between columns, each page of a fresh C is touched
// first by several threads at once, which the system serves one after the other (float32 at
// n = 2048 with two threads: 37 ms, not 40).
struct Grid {
  int64_t rows, cols;          // parts along m and n
  int64_t row_part, col_part;  // size of a part, a multiple of the tile
};

Grid choose_grid(int64_t m, int64_t n, int64_t mr, int64_t nr, int64_t threads) {
  constexpr double kPackCost = 16;  // of one element, in multiply-adds
  const int64_t m_tiles = ceil_div(m, mr), n_tiles = ceil_div(n, nr);
  Grid best{1, 1, m_tiles * mr, n_tiles * nr};
  double best_cost = -1;
  for (int64_t rows = 1; rows <= threads; ++rows) {
    const int64_t cols = threads / rows;
    const int64_t row_part = ceil_div(m_tiles, rows) * mr;
    const int64_t col_part = ceil_div(n_tiles, cols) * nr;
    const double cost = static_cast<double>(row_part) * static_cast<double>(col_part) +
                        kPackCost * static_cast<double>(2 * row_part + col_part);
    if (best_cost < 0 || cost < best_cost) {
      best_cost = cost;
      best = {ceil_div(m, row_part), ceil_div(n, col_part), row_part, col_part};
    }
  }
  return best;
}

template <class T, class P>
void contract_typed(const Contraction& op, const GemmKernels<T, P>& kernels, bool bias_on_rows) {
  const Product<T, P> product(op, kernels, bias_on_rows);
  const int64_t items = op.batch.numel(), m = product.rows(), n = product.cols();
  const double work =
      static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(product.depth());
  const int threads = work * static_cast<double>(items) < kInlineWork ? 1 : num_threads();
  if (threads == 1) {
    product.compute_items(0, items);
    return;
  }
  if (work < kSplitWork || items >= 4 * threads) {
    const int64_t grain =
        std::max<int64_t>(1, static_cast<int64_t>(kInlineWork / 4 / std::max(work, 1.0)));
    parallel_for(0, items, grain,
                 [&](int64_t begin, int64_t end) { product.compute_items(begin, end); });
    return;
  }
  const Grid grid = choose_grid(m, n, product.tile_rows(), product.tile_cols(), threads);
  const int64_t parts = grid.rows * grid.cols;
  parallel_for(0, items * parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts;
      const int64_t m0 = part / grid.cols * grid.row_part;
      const int64_t n0 = part % grid.cols * grid.col_part;
      product.compute(task / parts, m0, std::min(m, m0 + grid.row_part), n0,
                      std::min(n, n0 + grid.col_part));
    }
  });
}

const void* one(Dtype dtype) {
  static const double float64[] = {1, 0};  // complex128 too
  static const float float32[] = {1, 0};   // complex64 too
  static const uint16_t bfloat16 = 0x3f80, float16 = 0x3c00;
  static const int64_t integer = 1;
  switch (dtype) {
    case Dtype::kFloat64:
    case Dtype::kComplex128:
      return float64;
    case Dtype::kFloat32:
    case Dtype::kComplex64:
      return float32;
    case Dtype::kBFloat16:
      return &bfloat16;
    case Dtype::kFloat16:
      return &float16;
    default:
      return &integer;
  }
}

// A plain sum of complex numbers as sums of real and imaginary parts, none of which meets the zero
// in 1 + 0i: it would make NaN of infinity. Where the numbers lie side by side it is one sum.
void sum_of_parts(const Contraction& op) {
  Contraction parts = op;
  parts.dtype = op.dtype == Dtype::kComplex64 ? Dtype::kFloat32 : Dtype::kFloat64;
  parts.dtype_b = parts.dtype_c = parts.dtype;
  for (DimList<ContractionDim>* list : {&parts.m, &parts.n, &parts.k}) {
    for (int i = 0; i < list->count; ++i) {
      ContractionDim& dim = list->items[i];
      dim.b *= 2;
      dim.b2 *= 2;
      dim.c *= 2;
    }
  }
  const ContractionDim numbers = innermost(op.n);
  if (op.n.count > 0 && numbers.b == 1 && numbers.c == 1) {
    parts.n[op.n.count - 1] = {2 * numbers.size, 0, 0, 1, 1, 1};
    contract(parts);
    return;
  }
  const int64_t size = dtype_size(parts.dtype);
  contract(parts);
  parts.b = static_cast<const char*>(op.b) + size;
  parts.c = static_cast<char*>(op.c) + size;
  contract(parts);
}

// Whether items that share the other operand are products of their own, each in one piece of C:
// where rows (columns) of C have no one step from one item to the next, all of C waits in a buffer.
// It pays where what they share is small enough to be read again for each.
bool lie_apart(const Contraction& op, const DimList<ContractionDim>& side, int64_t shared) {
  constexpr int64_t kLeastSide = 8, kMostShared = 256 << 10;
  return op.s == nullptr && op.fold == Fold::kNone && side.count > 1 &&
         uniform_step(side, &ContractionDim::c, kNoStep) == kNoStep &&
         innermost(side).size >= kLeastSide &&
         shared * op.k.numel() * dtype_size(op.dtype) <= kMostShared;
}

bool contract_apart(const Contraction& op) {
  const bool rows = lie_apart(op, op.m, op.n.numel());
  if (!rows && (op.bias != nullptr || !lie_apart(op, op.n, op.m.numel()))) return false;
  Contraction items = op;
  split_outer(rows ? items.m : items.n, items.batch);
  contract(items);
  return true;
}

#if defined(__x86_64__)
// Whether dot products of pairs of bfloat16 numbers make it. A generated operand is rounded to
// bfloat16 for them, as it is where the product of two inputs is a tensor.
bool takes_pairs(const Contraction& op) {
  // Pairs do not straddle the runs of which the depth is made up.
  const bool even_runs = op.k.count < 2 || op.k[op.k.count - 1].size % 2 == 0;
  return op.dtype_a == Dtype::kBFloat16 && op.dtype_b == Dtype::kBFloat16 &&
         op.fold == Fold::kNone && op.scale == 1 && even_runs;
}

// Whether tiles make a product of pairs. The others go in float32 where there are tiles: those
// processors take 1.4 times as long for products of pairs.
bool takes_tiles(const Contraction& op) {
  using Dim = ContractionDim;
  constexpr int64_t kTileRows = kTileRun / 2;
  const Dim row = innermost(op.m), term = innermost(op.k);
  // Tiles do not straddle the runs of which the depth is made up.
  const bool whole_runs = term.size % kTileRun == 0;
  for (int64_t Dim::* stride : {&Dim::a, &Dim::s, &Dim::b}) {
    if (!whole_runs && uniform_step(op.k, stride, kNoStep) == kNoStep) return false;
  }
  // A generated operand has one factor along the depth, or one for the rows of a tile.
  return op.s == nullptr || (term.a == 1 && term.s == 0) ||
         (row.a == 1 && row.s == 0 && row.size % kTileRows == 0);
}
#endif

void contract_floating(const Contraction& op, bool bias_on_rows) {
  if (op.dtype == Dtype::kFloat64) {
    contract_typed(op, gemm_kernels<double>(), bias_on_rows);
  } else if (op.dtype == Dtype::kComplex64) {
    contract_typed(op, gemm_kernels<Complex<float>>(), bias_on_rows);
  } else if (op.dtype == Dtype::kComplex128) {
    contract_typed(op, gemm_kernels<Complex<double>>(), bias_on_rows);
#if defined(__x86_64__)
  } else if (isa() == Isa::kAmxBf16 && takes_pairs(op) && takes_tiles(op)) {
    contract_typed(op, gemm_kernels_amxbf16(), bias_on_rows);
  } else if (isa() == Isa::kAvx512Bf16 && takes_pairs(op)) {
    contract_typed(op, gemm_kernels_avx512bf16(), bias_on_rows);
#endif
  } else {
    contract_typed(op, gemm_kernels<float>(), bias_on_rows);
  }
}

}  // namespace

bool tiles(Dtype dtype) { return isa() == Isa::kAmxBf16 && dtype == Dtype::kBFloat16; }

void contract(const Contraction& op) {
  if (op.a == nullptr) {  // a plain sum, or an empty A: every a is one number, with a stride of 0
    if (is_complex(op.dtype) && op.k.count > 0 && op.k.numel() > 0) {
      sum_of_parts(op);
      return;
    }
    Contraction sum = op;
    sum.a = one(op.dtype);
    sum.dtype_a = op.dtype;
    contract(sum);
  } else if (is_integer(op.dtype)) {
    contract_integer(op);
  } else if (contract_dots(op) || contract_small(op) || contract_vectors(op) ||
             contract_apart(op)) {
    return;
  } else if (wants_transpose(op)) {
    Contraction transposed = op;
    transpose(transposed);
    contract_floating(transposed, true);
  } else {
    contract_floating(op, false);
  }
}

}  // namespace matcalc::cpu
