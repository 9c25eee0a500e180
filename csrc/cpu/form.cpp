// Per-item bilinear and quadratic forms: each batch item has a matrix of its own, read once.
//
// The matrix is walked along whichever of its dimensions is contiguous; by columns, y and x change
// places. A large one is cut into blocks, whose partial sums are added in ascending order. The
// blocks depend on the shape and strides of A alone, so neither the number of threads nor the batch
// changes a bit of the result. Threads take whole items where there are enough, else blocks.
//
// A is read at most once for all outputs together: where A x or A^T y is made, the value is its
// product with the other vector.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <utility>

#include "../kernels.h"
#include "../offsets.h"
#include "dispatch.h"
#include "isa/form_kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace matcalc::cpu {
namespace {

// A block: enough work for a thread, few enough that adding their partial sums costs little, no
// wider than the part of x and q that stays in L2 while its rows stream through.
constexpr int64_t kBlockElements = 65536;
constexpr int64_t kBlockCols = 8192;
constexpr int64_t kMaxRowBlocks = 32;
// A with no contiguous dimension is copied piece by piece: at most 32 KiB, so that it stays in L1.
constexpr int64_t kPieceRows = 16;
constexpr int64_t kPieceCols = 128;
constexpr int64_t kPackBytes = kPieceRows * kPieceCols * 16;
static_assert(kFormTile * kFormTile <= kPieceRows * kPieceCols);
// Partial sums of A^T y are a vector for each row block: at most so many numbers in all. Where that
// leaves fewer row blocks, the columns are so many that their blocks are enough.
constexpr int64_t kMaxParts = 1 << 20;

// So many items that have one matrix meet a block of it before the next block is read, if their
// partial sums are no more numbers than these in all.
constexpr int64_t kTogether = 8;

// The operands of one item.
struct Item {
  const char *y, *a, *x, *g;
  char *alpha, *dy, *da, *dx;
};

// Offsets of the items of a batch in order, in elements.
class Batch {
 public:
  Batch(const Form& op, int64_t bytes, int64_t first)
      : op_(op), bytes_(bytes), bytes_d_(dtype_size(op.dtype_d)) {
    at_ = {static_cast<const char*>(op.y), static_cast<const char*>(op.a),
           static_cast<const char*>(op.x), static_cast<const char*>(op.g),
           static_cast<char*>(op.alpha),   static_cast<char*>(op.dy),
           static_cast<char*>(op.da),      static_cast<char*>(op.dx)};
    for (int d = op.batch.count - 1; d >= 0; --d) {
      index_[d] = first % op.batch[d].size;
      first /= op.batch[d].size;
      move(op.batch[d], index_[d]);
    }
  }
  const Item& item() const { return at_; }
  void next() {
    for (int d = op_.batch.count - 1; d >= 0; --d) {
      const FormDim& dim = op_.batch[d];
      if (++index_[d] < dim.size) {
        move(dim, 1);
        return;
      }
      move(dim, 1 - dim.size);
      index_[d] = 0;
    }
  }

 private:
  // Operands that are absent stay nullptr: their strides are not looked at.
  template <class Pointer>
  void step(Pointer& p, int64_t bytes) {
    if (p != nullptr) p += bytes;
  }
  void move(const FormDim& dim, int64_t count) {
    step(at_.y, dim.y * count * bytes_);
    step(at_.a, dim.a * count * bytes_);
    step(at_.x, dim.x * count * bytes_);
    step(at_.g, dim.g * count * bytes_);
    step(at_.alpha, dim.alpha * count * bytes_);
    step(at_.dy, dim.dy * count * bytes_d_);
    step(at_.da, dim.da * count * bytes_);
    step(at_.dx, dim.dx * count * bytes_d_);
  }

  const Form& op_;
  int64_t bytes_, bytes_d_;  // of an element, and of one of dy and dx
  Item at_;
  int64_t index_[kMaxDims];
};

class Evaluation {
 public:
  explicit Evaluation(const Form& op);
  void run() const;

 private:
  struct Vectors {  // what the blocks of an item read and write, all contiguous
    const char *y, *x;
    char* parts;
  };
  struct Range {
    int64_t first, last;
  };

  bool products_wanted() const { return want_p_ || want_q_; }
  int64_t block_count() const { return row_blocks_ * col_blocks_; }
  Range rows_of(int64_t block) const;
  Range cols_of(int64_t block) const;

  bool small() const;
  void run_small(int64_t first, int64_t last) const;
  int64_t items_together() const;
  void run_together(Batch& batch, int64_t count, char* scratch, bool in_parallel) const;
  void block(const Item& at, const Vectors& v, int64_t index) const;
  void triangle(const Item& at, const Vectors& v, int64_t index) const;
  void outer(const Item& at, const Vectors& v, int64_t index) const;
  const char* pack_triangle(const char* tile, int64_t n, char* to) const;
  void finish(const Item& at, const Vectors& v) const;

  const char* contiguous(const char* from, int64_t stride, int64_t n, char*& scratch) const;
  template <class F>
  void pieces(const char* a, int64_t rows, int64_t cols, const F& f) const;
  void value(const char* a, int64_t rows, int64_t cols, const char* y, const char* x,
             char* sum) const;
  void products(const char* a, int64_t rows, int64_t cols, const char* y, const char* x, char* p,
                char* q) const;

  char* p_part(const Vectors& v, int64_t col_block) const {
    return v.parts + col_block * rows_ * k_.acc_bytes;
  }
  char* q_part(const Vectors& v, int64_t row_block) const {
    return v.parts + (p_parts_ * rows_ + row_block * cols_) * k_.acc_bytes;
  }

  const Form& op_;
  const FormKernelSet& k_;
  bool by_columns_;      // the walk goes along the columns of A: every name below is of A^T
  int64_t rows_, cols_;  // of A as it is walked
  int64_t row_, col_;    // its strides
  int64_t y_stride_, x_stride_, dy_stride_, dx_stride_;
  bool packed_;           // col_ is not 1
  bool want_p_, want_q_;  // A x and A^T y; of a symmetric A both are one vector, kept as q
  int64_t row_blocks_, col_blocks_;  // none where A is not read
  int64_t outer_blocks_;             // of rows of da
  int64_t p_parts_;                  // partial sums of p: one for each block of columns
  int64_t parts_;                    // Acc elements in all partial sums
  int64_t scratch_bytes_;            // of one item: gathered y, gathered x, partial sums
};

Evaluation::Evaluation(const Form& op) : op_(op), k_(form_kernels(op.dtype)) {
  // Along the contiguous dimension; where both or neither is, along the longer or the denser one.
  const bool col_unit = op.a_col == 1 || op.cols == 1;
  const bool row_unit = op.a_row == 1 || op.rows == 1;
  by_columns_ =
      col_unit == row_unit ? (col_unit ? op.rows > op.cols : op.a_row < op.a_col) : row_unit;
  rows_ = by_columns_ ? op.cols : op.rows;
  cols_ = by_columns_ ? op.rows : op.cols;
  row_ = by_columns_ ? op.a_col : op.a_row;
  col_ = by_columns_ ? op.a_row : op.a_col;
  y_stride_ = by_columns_ ? op.x_stride : op.y_stride;
  x_stride_ = by_columns_ ? op.y_stride : op.x_stride;
  dy_stride_ = by_columns_ ? op.dx_stride : op.dy_stride;
  dx_stride_ = by_columns_ ? op.dy_stride : op.dx_stride;
  packed_ = col_ != 1 && cols_ != 1;

  const bool want_y = op.quadratic ? op.dx != nullptr : op.dy != nullptr;
  const bool want_x = op.dx != nullptr;
  want_p_ = !op.symmetric && (by_columns_ ? want_x : want_y);
  want_q_ = op.symmetric ? want_x : (by_columns_ ? want_y : want_x);

  if (op.alpha == nullptr && !products_wanted()) {
    row_blocks_ = col_blocks_ = 0;
  } else {
    if (op.symmetric) {
      col_blocks_ = 1;
      row_blocks_ = ceil_div(rows_ * cols_ / 2, kBlockElements);
    } else {
      col_blocks_ = std::max<int64_t>(1, ceil_div(cols_, kBlockCols));
      row_blocks_ = ceil_div(rows_ * ceil_div(cols_, col_blocks_), kBlockElements);
    }
    const int64_t most = std::min(kMaxRowBlocks, kMaxParts / std::max<int64_t>(1, cols_));
    row_blocks_ = std::clamp<int64_t>(row_blocks_, 1, std::max<int64_t>(1, most));
  }
  outer_blocks_ = op.da == nullptr ? 0 : std::max<int64_t>(1, op.rows * op.cols / kBlockElements);

  // A value is two numbers for each block (of a symmetric matrix the part to be doubled is apart).
  p_parts_ = want_p_ ? col_blocks_ : 0;
  parts_ = products_wanted() ? p_parts_ * rows_ + (want_q_ ? row_blocks_ : 0) * cols_ : 0;
  parts_ = std::max(parts_, 2 * std::max<int64_t>(1, block_count()));
  scratch_bytes_ = (rows_ + cols_ + parts_) * k_.acc_bytes;
}

Evaluation::Range Evaluation::rows_of(int64_t block) const {
  if (row_blocks_ == 1) return {0, rows_};  // many small items: no divisions for each
  const int64_t index = block / col_blocks_;
  if (!op_.symmetric) {
    // Whole groups of eight rows, as the kernels take them.
    const int64_t groups = ceil_div(rows_, 8);
    return {std::min(rows_, groups * index / row_blocks_ * 8),
            std::min(rows_, groups * (index + 1) / row_blocks_ * 8)};
  }
  // Equal areas: of a lower triangle the share b / B lies above the row n sqrt(b / B).
  const int64_t tiles = ceil_div(rows_, kFormTile);
  const auto cut = [&](int64_t b) {
    const int64_t from_tip = by_columns_ ? row_blocks_ - b : b;
    const double share =
        std::sqrt(static_cast<double>(from_tip) / static_cast<double>(row_blocks_));
    const auto tile = static_cast<int64_t>(static_cast<double>(tiles) * share);
    return std::min(rows_, (by_columns_ ? tiles - tile : tile) * kFormTile);
  };
  return {cut(index), cut(index + 1)};
}

Evaluation::Range Evaluation::cols_of(int64_t block) const {
  if (col_blocks_ == 1) return {0, cols_};
  const int64_t index = block % col_blocks_;
  // Whole cache lines.
  const int64_t groups = ceil_div(cols_, 64);
  return {std::min(cols_, groups * index / col_blocks_ * 64),
          std::min(cols_, groups * (index + 1) / col_blocks_ * 64)};
}

// Whether items fit the kernel that keeps them in registers.
bool Evaluation::small() const {
  const bool unit = (y_stride_ == 1 || rows_ == 1) && (x_stride_ == 1 || cols_ == 1) &&
                    (op_.dy == nullptr || op_.dy_stride == 1) &&
                    (op_.dx == nullptr || op_.dx_stride == 1);
  return cols_ <= k_.small_cols && rows_ <= kSmallRows && unit && !packed_ && !op_.symmetric &&
         !(by_columns_ && op_.da != nullptr);  // da has the rows of A
}

// Items [first, last), by runs along the innermost dimension of the batch.
void Evaluation::run_small(int64_t first, int64_t last) const {
  const FormDim inner = innermost(op_.batch);
  while (first < last) {
    const int64_t count = std::min(last - first, inner.size - first % inner.size);
    Item at = Batch(op_, k_.item_bytes, first).item();
    int64_t y_step = inner.y, x_step = inner.x, dy_step = inner.dy, dx_step = inner.dx;
    if (by_columns_ && !op_.quadratic) {
      std::swap(at.y, at.x);
      std::swap(at.dy, at.dx);
      std::swap(y_step, x_step);
      std::swap(dy_step, dx_step);
    }
    const char* y = op_.quadratic ? at.x : at.y;
    k_.small({count,
              rows_,
              cols_,
              row_,
              y,
              at.a,
              at.x,
              at.g,
              at.alpha,
              at.dy,
              at.da,
              at.dx,
              op_.quadratic ? x_step : y_step,
              inner.a,
              x_step,
              inner.g,
              inner.alpha,
              dy_step,
              inner.da,
              dx_step,
              op_.quadratic,
              op_.dtype_d != op_.dtype});
    first += count;
  }
}

void Evaluation::run() const {
  // An empty output has no memory, and so looks like one that is not wanted.
  const int64_t tasks = block_count() + outer_blocks_;
  if (tasks == 0) return;
  const int64_t items = op_.batch.numel();
  if (small()) {
    parallel_for(0, items, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, rows_ * cols_)),
                 [&](int64_t first, int64_t last) { run_small(first, last); });
    return;
  }
  const int64_t area = std::max<int64_t>(1, rows_ * cols_);
  // Items one by one, each by all threads, where there are too few to share out evenly.
  const bool in_parallel =
      std::max(block_count(), outer_blocks_) > 1 && items < 4 * static_cast<int64_t>(num_threads());
  const int64_t grain = in_parallel ? items : std::max<int64_t>(1, kGrain / area);
  const int64_t together = items_together();
  parallel_for(0, items, grain, [&](int64_t first, int64_t last) {
    Scratch& scratch = Scratch::local();
    scratch.reserve(static_cast<size_t>(together * scratch_bytes_));
    char* bytes = scratch.take<char>(together * scratch_bytes_);
    Batch batch(op_, k_.item_bytes, first);
    for (int64_t i = first; i < last; i += together) {
      run_together(batch, std::min(together, last - i), bytes, in_parallel);
    }
  });
}

// One where each item has a matrix of its own.
int64_t Evaluation::items_together() const {
  for (int d = 0; d < op_.batch.count; ++d) {
    if (op_.batch[d].size != 1 && op_.batch[d].a != 0) return 1;
  }
  return std::clamp<int64_t>(std::min(op_.batch.numel(), kMaxParts / parts_), 1, kTogether);
}

// The next items of the batch: each block of A, or of da, for all of them in turn.
void Evaluation::run_together(Batch& batch, int64_t count, char* scratch, bool in_parallel) const {
  Item at[kTogether];
  Vectors v[kTogether];
  for (int64_t i = 0; i < count; ++i, batch.next(), scratch += scratch_bytes_) {
    at[i] = batch.item();
    if (by_columns_) {
      std::swap(at[i].y, at[i].x);
      std::swap(at[i].dy, at[i].dx);
    }
    char* free = scratch;
    v[i].y = contiguous(at[i].y, y_stride_, rows_, free);
    v[i].x = op_.quadratic ? v[i].y : contiguous(at[i].x, x_stride_, cols_, free);
    v[i].parts = free;
  }
  const int64_t blocks = block_count();
  const auto tasks = [&](int64_t first, int64_t last) {
    for (int64_t b = first; b < last; ++b) {
      for (int64_t i = 0; i < count; ++i) {
        if (b >= blocks) {
          outer(at[i], v[i], b - blocks);
        } else if (op_.symmetric) {
          triangle(at[i], v[i], b);
        } else {
          block(at[i], v[i], b);
        }
      }
    }
  };
  if (in_parallel) {
    parallel_for(0, blocks + outer_blocks_, 1, tasks);
  } else {
    tasks(0, blocks + outer_blocks_);
  }
  for (int64_t i = 0; blocks > 0 && i < count; ++i) finish(at[i], v[i]);
}

// The vector itself where it is stored as the kernels want it, else a copy in the scratch.
const char* Evaluation::contiguous(const char* from, int64_t stride, int64_t n,
                                   char*& scratch) const {
  if (k_.item_bytes == k_.acc_bytes && (stride == 1 || n == 1)) return from;
  char* to = scratch;
  scratch += n * k_.acc_bytes;
  k_.gather(from, stride, n, false, to);
  return to;
}

void Evaluation::block(const Item& at, const Vectors& v, int64_t index) const {
  const auto [i, i_end] = rows_of(index);
  const auto [j, j_end] = cols_of(index);
  const int64_t rows = i_end - i, cols = j_end - j;
  const int64_t acc = k_.acc_bytes;
  const char* a = at.a + (i * row_ + j * col_) * k_.item_bytes;
  if (!products_wanted()) {
    char* sum = v.parts + 2 * index * acc;
    std::memset(sum, 0, 2 * acc);
    value(a, rows, cols, v.y + i * acc, v.x + j * acc, sum);
    return;
  }
  char* p = want_p_ ? p_part(v, col_blocks_ == 1 ? 0 : index % col_blocks_) + i * acc : nullptr;
  char* q = want_q_ ? q_part(v, col_blocks_ == 1 ? index : index / col_blocks_) + j * acc : nullptr;
  if (p != nullptr) std::memset(p, 0, rows * acc);
  if (q != nullptr) std::memset(q, 0, cols * acc);
  products(a, rows, cols, v.y + i * acc, v.x + j * acc, p, q);
}

void Evaluation::triangle(const Item& at, const Vectors& v, int64_t index) const {
  const auto [first, last] = rows_of(index);
  const int64_t n = rows_, acc = k_.acc_bytes;
  const bool value_only = !products_wanted();
  char* sum = value_only ? v.parts + 2 * index * acc : q_part(v, index);
  std::memset(sum, 0, (value_only ? 2 : n) * acc);
  alignas(64) char piece[kPackBytes];
  for (int64_t i = first; i < last; i += kFormTile) {
    const int64_t rows = std::min(kFormTile, last - i);
    const char* y = v.y + i * acc;
    // The rectangle beside the tile stands for itself and for its mirror image.
    const int64_t j = by_columns_ ? i + rows : 0;
    const int64_t cols = by_columns_ ? n - j : i;
    const char* rectangle = at.a + (i * row_ + j * col_) * k_.item_bytes;
    if (cols > 0 && value_only) {
      value(rectangle, rows, cols, y, v.x + j * acc, sum + acc);
    } else if (cols > 0) {
      products(rectangle, rows, cols, y, v.x + j * acc, sum + i * acc, sum + j * acc);
    }
    const char* tile = at.a + i * (row_ + col_) * k_.item_bytes;
    int64_t lda = row_;
    if (packed_ || by_columns_) {
      tile = pack_triangle(tile, rows, piece);
      lda = kFormTile;
    }
    if (value_only) {
      k_.triangle_value(tile, lda, rows, y, sum);
    } else {
      k_.triangle_products(tile, lda, rows, y, sum + i * acc);
    }
  }
}

// A copy of a diagonal tile as a lower triangle; what is above it is neither read nor set.
const char* Evaluation::pack_triangle(const char* tile, int64_t n, char* to) const {
  for (int64_t i = 0; i < n; ++i) {
    char* row = to + i * kFormTile * k_.item_bytes;
    if (by_columns_) {
      k_.pack(tile + i * col_ * k_.item_bytes, col_, row_, 1, i + 1, row);
    } else {
      k_.pack(tile + i * row_ * k_.item_bytes, row_, col_, 1, i + 1, row);
    }
  }
  return to;
}

// A block of rows of da, whose rows and columns are those of A, however A is walked.
void Evaluation::outer(const Item& at, const Vectors& v, int64_t index) const {
  const int64_t first = op_.rows * index / outer_blocks_;
  const int64_t last = op_.rows * (index + 1) / outer_blocks_;
  const char* y = by_columns_ ? v.x : v.y;
  const char* x = by_columns_ ? v.y : v.x;
  k_.outer(y + first * k_.acc_bytes, x, 0, last - first, op_.cols, at.g, is_complex(op_.dtype),
           at.da + first * op_.cols * k_.item_bytes, op_.cols);
}

// Adds the partial sums in ascending order and writes the outputs.
void Evaluation::finish(const Item& at, const Vectors& v) const {
  if (!products_wanted()) {
    for (int64_t b = 0; b < block_count(); ++b) {
      char* sum = v.parts + 2 * b * k_.acc_bytes;
      if (b > 0) k_.add(sum, 1, v.parts);
      for (int twice = 0; op_.symmetric && twice < 2; ++twice) {
        k_.add(sum + k_.acc_bytes, 1, v.parts);
      }
    }
    k_.finish(v.parts, 1, nullptr, 1, false, false, at.alpha, 1);
    return;
  }
  for (int64_t b = 1; b < p_parts_; ++b) k_.add(p_part(v, b), rows_, p_part(v, 0));
  for (int64_t b = 1; want_q_ && b < row_blocks_; ++b) k_.add(q_part(v, b), cols_, q_part(v, 0));
  if (op_.alpha != nullptr) {
    alignas(16) char sum[2 * sizeof(double)] = {};
    if (want_p_) {
      k_.dot(v.y, p_part(v, 0), rows_, sum);
    } else {
      k_.dot(v.x, q_part(v, 0), cols_, sum);
    }
    k_.finish(sum, 1, nullptr, 1, false, false, at.alpha, 1);
  }
  const bool conj = is_complex(op_.dtype), wide = op_.dtype_d != op_.dtype;
  if (op_.quadratic) {
    // One output, the one that the form calls dx.
    char* to = by_columns_ ? at.dy : at.dx;
    const int64_t stride = by_columns_ ? dy_stride_ : dx_stride_;
    if (!op_.symmetric) k_.add(p_part(v, 0), cols_, q_part(v, 0));
    k_.finish(q_part(v, 0), cols_, at.g, op_.symmetric ? 2 : 1, conj, wide, to, stride);
    return;
  }
  if (want_p_) k_.finish(p_part(v, 0), rows_, at.g, 1, conj, wide, at.dy, dy_stride_);
  if (want_q_) k_.finish(q_part(v, 0), cols_, at.g, 1, conj, wide, at.dx, dx_stride_);
}

// Calls f(a, lda, i, j, rows, cols) on A itself where its rows are contiguous, else on copies of
// pieces of it, [i, i + rows) by [j, j + cols).
template <class F>
void Evaluation::pieces(const char* a, int64_t rows, int64_t cols, const F& f) const {
  if (!packed_) {
    f(a, row_, int64_t{0}, int64_t{0}, rows, cols);
    return;
  }
  alignas(64) char piece[kPackBytes];
  for (int64_t j = 0; j < cols; j += kPieceCols) {
    const int64_t n = std::min(kPieceCols, cols - j);
    for (int64_t i = 0; i < rows; i += kPieceRows) {
      const int64_t m = std::min(kPieceRows, rows - i);
      k_.pack(a + (i * row_ + j * col_) * k_.item_bytes, row_, col_, m, n, piece);
      f(piece, n, i, j, m, n);
    }
  }
}

void Evaluation::value(const char* a, int64_t rows, int64_t cols, const char* y, const char* x,
                       char* sum) const {
  pieces(a, rows, cols,
         [&](const char* from, int64_t lda, int64_t i, int64_t j, int64_t m, int64_t n) {
           k_.value(from, lda, m, n, y + i * k_.acc_bytes, x + j * k_.acc_bytes, sum);
         });
}

void Evaluation::products(const char* a, int64_t rows, int64_t cols, const char* y, const char* x,
                          char* p, char* q) const {
  const auto at = [&](char* vector, int64_t i) {
    return vector == nullptr ? nullptr : vector + i * k_.acc_bytes;
  };
  pieces(a, rows, cols,
         [&](const char* from, int64_t lda, int64_t i, int64_t j, int64_t m, int64_t n) {
           k_.products(from, lda, m, n,
                       {1, y + i * k_.acc_bytes, x + j * k_.acc_bytes, at(p, i), at(q, j), 0, 0});
         });
}

}  // namespace

const FormKernelSet& form_kernels(Dtype dtype) {
  const auto index = static_cast<int>(dtype);
#if defined(__x86_64__)
  switch (isa()) {
    case Isa::kAmxBf16:
    case Isa::kAvx512Bf16:
    case Isa::kAvx512:
      return form_kernels_avx512().of[index];
    case Isa::kAvx2:
      return form_kernels_avx2().of[index];
    case Isa::kScalar:
      break;
  }
#endif
  return form_kernels_scalar().of[index];
}

void form(const Form& op) { Evaluation(op).run(); }

}  // namespace matcalc::cpu
