// Integer contractions. Sums wrap modulo 2^bits, as torch's do, and so are the same in any order: C
// itself keeps them from one block of the depth to the next, and working memory has a fixed size.
//
//   dots      few columns, by rows that are contiguous along the depth
//   rows      one or two rows, or terms, by a B of contiguous rows
//   blocked   everything else: A and B are packed into the panels of a register tile
//
// The first two read the operands where they lie. A product that is one of them transposed is
// computed so.
#include "integer.h"

#include <algorithm>

#include "../offsets.h"
#include "dispatch.h"
#include "isa/integer_kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace matcalc::cpu {
namespace {

using Dim = ContractionDim;

const IntegerKernelTable& kernel_table() {
  switch (isa()) {
#if defined(__x86_64__)
    case Isa::kAmxBf16:
    case Isa::kAvx512Bf16:
    case Isa::kAvx512:
      return integer_kernels_avx512();
    case Isa::kAvx2:
      return integer_kernels_avx2();
#endif
    default:
      return integer_kernels_scalar();
  }
}

const IntegerKernels<uint8_t>& kernels_of(uint8_t) { return kernel_table().uint8; }
const IntegerKernels<int8_t>& kernels_of(int8_t) { return kernel_table().int8; }
const IntegerKernels<int16_t>& kernels_of(int16_t) { return kernel_table().int16; }
const IntegerKernels<int32_t>& kernels_of(int32_t) { return kernel_table().int32; }
const IntegerKernels<int64_t>& kernels_of(int64_t) { return kernel_table().int64; }

// Terms of a block of the depth, and bytes of what is packed at a time: a panel of B stays in L1,
// the rest in L2.
constexpr int64_t kDepth = 256;
constexpr int64_t kBytesA = 128 << 10, kBytesB = 256 << 10;
// Of a vector, or of the sums of rows, taken at a time: in L1. So many rows are summed meanwhile.
constexpr int64_t kPieceBytes = 16 << 10, kFactors = 32;
// Columns at most for which dots pay, and terms at least where there is more than one.
constexpr int64_t kDotCols = 16, kDotDepth = 64;
// Rows at most, or terms, and columns at least, for which sums of rows pay.
constexpr int64_t kFewRows = 2, kFewTerms = 2, kRowCols = 16;
// What an item costs before its first multiply-add, in multiply-adds.
constexpr double kStart = 256;
// A product of fewer columns than this part of a tile is computed transposed.
constexpr int64_t kNarrow = 4;

template <class T>
class IntegerProduct {
 public:
  // Along m and n there is one dimension at most.
  explicit IntegerProduct(const Contraction& op)
      : op_(op),
        rows_(op.m.numel()),
        cols_(op.n.numel()),
        depth_(op.k.numel()),
        run_(innermost(op.k).size),
        a_row_(step_of(op.m, &Dim::a)),
        a_term_(innermost(op.k).a),
        b_term_(innermost(op.k).b),
        b_col_(step_of(op.n, &Dim::b)),
        c_row_(step_of(op.m, &Dim::c)),
        c_col_(step_of(op.n, &Dim::c)) {}

  // Whether it is computed from the operands as they lie.
  bool in_place() const { return takes_dots() || takes_rows(); }
  bool is_narrow() const { return kNarrow * cols_ <= kernels_.nr && cols_ < rows_; }

  // Shares out the items, or the longer side of each.
  void run() const {
    const double work = kStart + static_cast<double>(rows_) * static_cast<double>(cols_) *
                                     static_cast<double>(depth_);
    const int64_t items = op_.batch.numel();
    const bool by_rows = rows_ >= cols_;
    const int64_t side = by_rows ? rows_ : cols_;
    const int64_t step = takes_dots() ? 1 : by_rows ? kernels_.mr : kernels_.nr;
    const int64_t threads = num_threads();
    const bool whole = work < 2 * kInlineWork || items >= 4 * threads;
    const int64_t part = whole ? side : round_up(ceil_div(side, threads), step);
    const int64_t parts = ceil_div(side, part);
    const double grain = kInlineWork / (work / static_cast<double>(parts));
    parallel_for(0, items * parts, static_cast<int64_t>(std::max(1.0, grain)),
                 [&](int64_t begin, int64_t end) {
                   for (int64_t task = begin; task < end; ++task) {
                     const int64_t first = task % parts * part;
                     const int64_t last = std::min(side, first + part);
                     if (by_rows) {
                       compute(task / parts, first, last, 0, cols_);
                     } else {
                       compute(task / parts, 0, rows_, first, last);
                     }
                   }
                 });
  }

 private:
  using Sum = IntegerSum<T>;
  static constexpr int64_t kPiece = kPieceBytes / sizeof(T);

  bool takes_dots() const {
    return (cols_ == 1 || (cols_ <= kDotCols && depth_ >= kDotDepth)) &&
           (a_term_ == 1 || rows_ == 1);
  }
  bool takes_rows() const {
    return (rows_ <= kFewRows || depth_ <= kFewTerms) && cols_ >= kRowCols && b_col_ == 1 &&
           c_col_ == 1;
  }

  // Rows and columns of one item.
  struct Part {
    const T *a, *b;
    T* c;
    int64_t rows, cols;
  };

  void compute(int64_t item, int64_t m0, int64_t m1, int64_t n0, int64_t n1) const {
    const Part part = {
        static_cast<const T*>(op_.a) + offset_of(op_.batch, &Dim::a, item) + m0 * a_row_,
        static_cast<const T*>(op_.b) + offset_of(op_.batch, &Dim::b, item) + n0 * b_col_,
        static_cast<T*>(op_.c) + offset_of(op_.batch, &Dim::c, item) + m0 * c_row_ + n0 * c_col_,
        m1 - m0, n1 - n0};
    if (takes_dots()) {
      compute_dots(part);
    } else if (takes_rows()) {
      compute_rows(part);
    } else {
      compute_blocks(part);
    }
  }

  // f(k, depth, a, b) for blocks of the depth in turn, along each of which an operand has one step;
  // a and b are where it begins. Of no depth there is one empty block.
  template <class F>
  void for_blocks_of_depth(const Part& part, int64_t most, const F& f) const {
    int64_t k = 0;
    do {
      const int64_t depth = depth_ == 0 ? 0 : std::min(most, run_ - k % run_);
      f(k, depth, part.a + offset_of(op_.k, &Dim::a, k), part.b + offset_of(op_.k, &Dim::b, k));
      k += depth;
    } while (k < depth_);
  }

  // c (+)= sum
  static void put(Sum sum, bool accumulate, T& c) {
    c = static_cast<T>(accumulate ? sum + static_cast<Sum>(c) : sum);
  }

  // The n numbers, copied where they are not side by side.
  static const T* contiguous(int64_t n, const T* from, int64_t step, T* to) {
    if (step == 1) return from;
    for (int64_t i = 0; i < n; ++i) to[i] = from[i * step];
    return to;
  }

  void compute_dots(const Part& part) const {
    Scratch& scratch = Scratch::local();
    scratch.reserve((1 + kDotCols) * Scratch::size_of<T>(kPiece));
    T* row = scratch.take<T>(kPiece);
    T* col = scratch.take<T>(kDotCols * kPiece);
    for_blocks_of_depth(part, kPiece, [&](int64_t k, int64_t depth, const T* a, const T* b) {
      const T* cols[kDotCols];
      for (int64_t j = 0; j < part.cols; ++j) {
        cols[j] = contiguous(depth, b + j * b_col_, b_term_, col + j * kPiece);
      }
      for (int64_t i = 0; i < part.rows; ++i) {
        const T* terms = contiguous(depth, a + i * a_row_, a_term_, row);
        for (int64_t j = 0; j < part.cols; ++j) {
          put(kernels_.dot(depth, terms, cols[j]), k > 0, part.c[i * c_row_ + j * c_col_]);
        }
      }
    });
  }

  void compute_rows(const Part& part) const {
    for (int64_t j = 0; j < part.cols; j += kPiece) {
      const int64_t cols = std::min(kPiece, part.cols - j);
      for_blocks_of_depth(part, kFactors, [&](int64_t k0, int64_t depth, const T* a, const T* b) {
        for (int64_t i = 0; i < part.rows; ++i) {
          Sum factors[kFactors];
          for (int64_t k = 0; k < depth; ++k) {
            factors[k] = static_cast<Sum>(a[i * a_row_ + k * a_term_]);
          }
          T* c = part.c + i * c_row_ + j;
          if (k0 == 0) std::fill_n(c, cols, T{0});
          kernels_.add_rows(depth, cols, factors, b + j, b_term_, c);
        }
      });
    }
  }

  void compute_blocks(const Part& part) const {
    const int64_t mr = kernels_.mr, nr = kernels_.nr;
    const int64_t most_depth = std::min(kDepth, run_), size = sizeof(Sum) * kDepth;
    const int64_t most_rows = std::min(kBytesA / size / mr * mr, round_up(part.rows, mr));
    const int64_t most_cols = std::min(kBytesB / size / nr * nr, round_up(part.cols, nr));
    Scratch& scratch = Scratch::local();
    scratch.reserve(Scratch::size_of<Sum>(most_rows * most_depth) +
                    Scratch::size_of<Sum>(most_cols * most_depth));
    Sum* packed_a = scratch.take<Sum>(most_rows * most_depth);
    Sum* packed_b = scratch.take<Sum>(most_cols * most_depth);
    for (int64_t j0 = 0; j0 < part.cols; j0 += most_cols) {
      const int64_t cols = std::min(most_cols, part.cols - j0);
      for_blocks_of_depth(part, kDepth, [&](int64_t k, int64_t depth, const T* a, const T* b) {
        for (int64_t j = 0; j < cols; j += nr) {
          kernels_.pack_b(packed_b + j * depth, std::min(nr, cols - j), depth,
                          b + (j0 + j) * b_col_, b_col_, b_term_);
        }
        for (int64_t i0 = 0; i0 < part.rows; i0 += most_rows) {
          const int64_t rows = std::min(most_rows, part.rows - i0);
          for (int64_t i = 0; i < rows; i += mr) {
            kernels_.pack_a(packed_a + i * depth, std::min(mr, rows - i), depth,
                            a + (i0 + i) * a_row_, a_row_, a_term_);
          }
          for (int64_t j = 0; j < cols; j += nr) {
            for (int64_t i = 0; i < rows; i += mr) {
              kernels_.tile(std::min(mr, rows - i), std::min(nr, cols - j), depth,
                            packed_a + i * depth, packed_b + j * depth,
                            part.c + (i0 + i) * c_row_ + (j0 + j) * c_col_, c_row_, c_col_, k > 0);
            }
          }
        }
      });
    }
  }

  const Contraction& op_;
  const IntegerKernels<T>& kernels_ = kernels_of(T{});
  const int64_t rows_, cols_, depth_;
  const int64_t run_;  // terms along the innermost dimension of the depth
  const int64_t a_row_, a_term_, b_term_, b_col_, c_row_, c_col_;
};

template <class T>
void contract_typed(const Contraction& op) {
  const IntegerProduct<T> product(op);
  if (product.in_place()) return product.run();
  Contraction mirrored = op;
  transpose(mirrored);
  const IntegerProduct<T> other(mirrored);
  if (other.in_place() || product.is_narrow()) return other.run();
  product.run();
}

void contract_items(const Contraction& op) {
  switch (op.dtype) {
    case Dtype::kUInt8:
      contract_typed<uint8_t>(op);
      break;
    case Dtype::kInt8:
      contract_typed<int8_t>(op);
      break;
    case Dtype::kInt16:
      contract_typed<int16_t>(op);
      break;
    case Dtype::kInt32:
      contract_typed<int32_t>(op);
      break;
    default:
      contract_typed<int64_t>(op);
      break;
  }
}

}  // namespace

void contract_integer(const Contraction& op) {
  if (op.m.count <= 1 && op.n.count <= 1) {
    contract_items(op);
  } else {
    Contraction items = op;  // what several items of a batch share is a matrix of each
    split_outer(items.m, items.batch);
    split_outer(items.n, items.batch);
    contract_items(items);
  }
}

}  // namespace matcalc::cpu
