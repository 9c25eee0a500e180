// Contractions that read, or write, a matrix once: A X with few columns X (products with a vector,
// sums along a dimension, dot products: matrices of one row), and those without a sum: outer
// products, and numbers times vectors.
//
// A is walked along whichever of its dimensions is contiguous. Along the depth each output is a dot
// product, else rows of A are added with weights; both are one kernel's. The depth goes in blocks
// of a fixed size, whose partial sums are added in ascending order, and within a block the order
// follows from the kernel alone: neither the number of threads nor the batch changes a bit.
// Threads take parts of the outputs, of several blocks where the outputs are few.
#include "vector.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "../offsets.h"
#include "caches.h"
#include "gemm.h"
#include "isa/form_kernels.h"
#include "parallel.h"
#include "scratch.h"

namespace matcalc::cpu {
namespace {

using Dim = ContractionDim;

// Vectors up to which reading A is most of the work: a row of it in registers meets four at once.
// Eight dots of contiguous rows still beat a gemm, which has to pack them; sums of rows, which the
// gemm's tile reads where they lie, do not; and nor do short dots, which end in as many additions
// within a register as they have steps, nor complex ones, for which a row is read once per vector.
constexpr int64_t kMaxDots = 8;
constexpr int64_t kShortDot = 64;
// Of bfloat16, whose elements a gemm multiplies in pairs, a dot for so many steps of its length.
constexpr int64_t kPairsPerDot = 32;
constexpr int64_t kMaxSums = 4;
// A matrix of so many bytes comes from memory, and is better read twice by whole rows than once by
// the gemm's narrow panels (8 x 4096 by 4096 x 4096: half the time on one thread); twelve vectors
// take three quarters of the time that packing it for them does. Complex rows are read once per
// vector, from L2.
constexpr int64_t kFarBytes = 32 << 20;
constexpr int64_t kMaxFarSums = 12;
constexpr int64_t kMaxFarComplexSums = 8;
// So is one whose rows share a set of L1, where a panel does not take all vectors (AVX2, seven or
// eight of 1024 numbers, 1024 columns: two thirds of the time).
constexpr int64_t kMaxCollidingSums = 8;
// Of any matrix, and of one that is far.
constexpr int64_t kMaxNear = std::max(kMaxDots, kMaxCollidingSums);
constexpr int64_t kMaxVectors = std::max({kMaxNear, kMaxFarSums, kMaxFarComplexSums});
// Depth of a block. Dots: long enough for a thread, whose sums along a register are short anyway.
// Sums of rows: short, for the sake of their rounding, as each adds one after the other.
constexpr int64_t kDotDepth = 16384;
constexpr int64_t kRowDepth = 512;
// Sums of blocks, in memory at a time: 12 rows by a matrix of 4 GiB have 100 MB of them.
constexpr int64_t kPartsBytes = 16 << 20;
// Outputs are shared out by whole groups of rows as the kernel takes them, or whole cache lines.
constexpr int64_t kDotGroup = 8;
constexpr int64_t kRowGroup = 64;
// Outputs whose sums are kept at a time, and elements of a vector gathered at a time: what the
// kernel walks at once, so that they stay in L1.
constexpr int64_t kPiece = 4096;
// Items at a time of which there is one dot product each.
constexpr int64_t kDotRun = 256;
// Columns at a time where their elements come from as many rows: each line that is read is used up
// before others take its place in the cache, also where they all belong to one set of it.
constexpr int64_t kAcross = 16;

// The operands of one item.
struct Item {
  const char *a, *b;
  char* c;
};

Item item_of(const Contraction& op, int64_t index) {
  return {
      static_cast<const char*>(op.a) + offset_of(op.batch, &Dim::a, index) * dtype_size(op.dtype_a),
      static_cast<const char*>(op.b) + offset_of(op.batch, &Dim::b, index) * dtype_size(op.dtype_b),
      static_cast<char*>(op.c) + offset_of(op.batch, &Dim::c, index) * dtype_size(op.dtype_c)};
}

// C[m, v] = bias + sum_k A[m, k] B[k, v] for few v.
class FewVectors {
 public:
  // op.m has one dimension or none, op.k one.
  FewVectors(const Contraction& op, bool bias_on_rows);
  void run() const;

 private:
  int64_t acc(int64_t count) const { return count * ka_.acc_bytes; }
  char* part(char* parts, int64_t block, int64_t v, int64_t row) const {
    return parts + acc((block * count_ + v) * rows_ + row);
  }
  // Working memory of a thread: the vectors, or a bias, as the kernels want them.
  int64_t gathered_bytes() const {
    return acc(std::max(count_ * std::min(kPiece, depth_), kPiece));
  }

  void run_strips(int64_t rows) const;
  void item_in_parallel(const Item& at) const;
  void strips(const Item& at, int64_t first, int64_t last, char* sums, char* gathered) const;
  void range(const Item& at, int64_t first, int64_t last, char* parts, char* gathered) const;
  void products(const Item& at, int64_t block, int64_t m0, int64_t m1, char* sums, int64_t ld,
                char* gathered) const;
  void add_parts(const Item& at, int64_t m0, int64_t m1, char* parts, char* gathered) const;
  void finish(const Item& at, int64_t v, int64_t m0, int64_t m1, char* sums, char* gathered) const;

  const Contraction& op_;
  const FormKernelSet &ka_, &kb_, &kc_, &kbias_;
  const bool bias_on_rows_;
  const int64_t rows_, depth_, count_;  // of A, and vectors
  const int64_t m_a_, k_a_, k_b_, m_c_;
  const bool dots_;                          // A is contiguous along the depth
  const bool in_place_;                      // the vectors are read where they lie
  const int64_t block_depth_, blocks_;       // of the depth
  const int64_t group_, groups_;             // of outputs
  int64_t b_[kMaxVectors], c_[kMaxVectors];  // offsets of the vectors
};

FewVectors::FewVectors(const Contraction& op, bool bias_on_rows)
    : op_(op),
      ka_(form_kernels(op.dtype_a)),
      kb_(form_kernels(op.dtype_b)),
      kc_(form_kernels(op.dtype_c)),
      kbias_(form_kernels(op.dtype)),
      bias_on_rows_(bias_on_rows),
      rows_(op.m.numel()),
      depth_(op.k[0].size),
      count_(op.n.numel()),
      m_a_(step_of(op.m, &Dim::a)),
      k_a_(op.k[0].a),
      k_b_(op.k[0].b),
      m_c_(step_of(op.m, &Dim::c)),
      dots_(k_a_ == 1),
      in_place_(k_b_ == 1 && kb_.item_bytes == kb_.acc_bytes && op.conj_a == op.conj_b &&
                op.n.count <= 1),
      block_depth_(dots_ ? kDotDepth : kRowDepth),
      blocks_(ceil_div(depth_, block_depth_)),
      group_(dots_ ? kDotGroup : kRowGroup),
      groups_(ceil_div(rows_, group_)) {
  offsets_of(op.n, &Dim::b, 0, count_, b_);
  offsets_of(op.n, &Dim::c, 0, count_, c_);
}

void FewVectors::run() const {
  const int64_t most_rows = std::max<int64_t>(kPartsBytes / acc(blocks_ * count_), group_);
  if (blocks_ > 1 && rows_ > most_rows) {
    run_strips(most_rows / group_ * group_);
    return;
  }
  const int64_t items = op_.batch.numel(), area = rows_ * depth_;
  // Items one by one, each by all threads, where there are too few to share out evenly.
  if (area > kGrain && blocks_ * groups_ > 1 && items < 4 * num_threads()) {
    for (int64_t i = 0; i < items; ++i) item_in_parallel(item_of(op_, i));
    return;
  }
  const int64_t kept = acc(count_ * (blocks_ == 1 ? std::min(kPiece, rows_) : blocks_ * rows_));
  parallel_for(0, items, std::max<int64_t>(1, kGrain / area), [&](int64_t first, int64_t last) {
    Scratch& scratch = Scratch::local();
    scratch.reserve(Scratch::size_of<char>(gathered_bytes()) + Scratch::size_of<char>(kept));
    char* gathered = scratch.take<char>(gathered_bytes());
    char* sums = scratch.take<char>(kept);
    for (int64_t i = first; i < last; ++i) {
      const Item at = item_of(op_, i);
      if (blocks_ == 1) {
        strips(at, 0, rows_, sums, gathered);
      } else {
        range(at, 0, blocks_ * groups_, sums, gathered);
        add_parts(at, 0, rows_, sums, gathered);
      }
    }
  });
}

// So many outputs after the other: each is the same sum.
void FewVectors::run_strips(int64_t rows) const {
  Contraction strip = op_;
  for (int64_t m = 0; m < rows_; m += rows) {
    strip.m[0].size = std::min(rows, rows_ - m);
    strip.a = static_cast<const char*>(op_.a) + m * m_a_ * ka_.item_bytes;
    strip.c = static_cast<char*>(op_.c) + m * m_c_ * kc_.item_bytes;
    if (op_.bias != nullptr && bias_on_rows_) {
      strip.bias = static_cast<const char*>(op_.bias) + m * op_.bias_stride * kbias_.item_bytes;
    }
    FewVectors(strip, bias_on_rows_).run();
  }
}

void FewVectors::item_in_parallel(const Item& at) const {
  const int64_t tasks = blocks_ * groups_;
  const int64_t grain = std::max<int64_t>(1, kGrain * tasks / (rows_ * depth_));
  if (blocks_ == 1) {
    parallel_for(0, tasks, grain, [&](int64_t first, int64_t last) {
      const int64_t kept = acc(count_ * std::min(kPiece, rows_));
      Scratch& scratch = Scratch::local();
      scratch.reserve(Scratch::size_of<char>(gathered_bytes()) + Scratch::size_of<char>(kept));
      char* gathered = scratch.take<char>(gathered_bytes());
      strips(at, first * group_, std::min(rows_, last * group_), scratch.take<char>(kept),
             gathered);
    });
    return;
  }
  const int64_t kept = acc(blocks_ * count_ * rows_);
  Scratch& shared = Scratch::shared();
  shared.reserve(static_cast<size_t>(kept));
  char* parts = shared.take<char>(kept);
  const auto with_gathered = [&](const auto& f) {
    return [&](int64_t first, int64_t last) {
      Scratch& scratch = Scratch::local();
      scratch.reserve(static_cast<size_t>(gathered_bytes()));
      f(first, last, scratch.take<char>(gathered_bytes()));
    };
  };
  parallel_for(0, tasks, grain, with_gathered([&](int64_t first, int64_t last, char* gathered) {
                 range(at, first, last, parts, gathered);
               }));
  parallel_for(0, rows_, std::max<int64_t>(1, kGrain / (blocks_ * count_)),
               with_gathered([&](int64_t first, int64_t last, char* gathered) {
                 add_parts(at, first, last, parts, gathered);
               }));
}

// Outputs [first, last) of an item whose depth is one block.
void FewVectors::strips(const Item& at, int64_t first, int64_t last, char* sums,
                        char* gathered) const {
  for (int64_t m0 = first; m0 < last; m0 += kPiece) {
    const int64_t m1 = std::min(last, m0 + kPiece);
    products(at, 0, m0, m1, sums, m1 - m0, gathered);
    for (int64_t v = 0; v < count_; ++v) {
      finish(at, v, m0, m1, sums + acc(v * (m1 - m0)), gathered);
    }
  }
}

// Tasks [first, last), of which a block of the depth has one for each group of outputs.
void FewVectors::range(const Item& at, int64_t first, int64_t last, char* parts,
                       char* gathered) const {
  while (first < last) {
    const int64_t block = first / groups_, begin = block * groups_;
    const int64_t end = std::min(last, begin + groups_);
    const int64_t m0 = (first - begin) * group_, m1 = std::min(rows_, (end - begin) * group_);
    products(at, block, m0, m1, part(parts, block, 0, m0), rows_, gathered);
    first = end;
  }
}

// The sums of one block of the depth, those of a vector ld after those of the one before it.
void FewVectors::products(const Item& at, int64_t block, int64_t m0, int64_t m1, char* sums,
                          int64_t ld, char* gathered) const {
  for (int64_t v = 0; v < count_; ++v) std::memset(sums + acc(v * ld), 0, acc(m1 - m0));
  const int64_t end = std::min(depth_, (block + 1) * block_depth_);
  for (int64_t k = block * block_depth_; k < end; k += kPiece) {
    const int64_t n = std::min(kPiece, end - k);
    const char* vectors = at.b + (b_[0] + k) * kb_.item_bytes;
    int64_t ld_vectors = count_ > 1 ? b_[1] - b_[0] : 0;
    if (!in_place_) {
      for (int64_t v = 0; v < count_; ++v) {
        kb_.gather(at.b + (b_[v] + k * k_b_) * kb_.item_bytes, k_b_, n, op_.conj_a != op_.conj_b,
                   gathered + acc(v * n));
      }
      vectors = gathered;
      ld_vectors = n;
    }
    const char* a = at.a + (m0 * m_a_ + k * k_a_) * ka_.item_bytes;
    if (dots_) {
      ka_.products(a, m_a_, m1 - m0, n, {count_, nullptr, vectors, sums, nullptr, ld, ld_vectors});
    } else {
      ka_.products(a, k_a_, n, m1 - m0, {count_, vectors, nullptr, nullptr, sums, ld_vectors, ld});
    }
  }
}

// Adds the partial sums of outputs [m0, m1) in ascending order and writes them.
void FewVectors::add_parts(const Item& at, int64_t m0, int64_t m1, char* parts,
                           char* gathered) const {
  for (int64_t v = 0; v < count_; ++v) {
    char* sums = part(parts, 0, v, m0);
    for (int64_t b = 1; b < blocks_; ++b) ka_.add(part(parts, b, v, m0), m1 - m0, sums);
    finish(at, v, m0, m1, sums, gathered);
  }
}

void FewVectors::finish(const Item& at, int64_t v, int64_t m0, int64_t m1, char* sums,
                        char* gathered) const {
  for (int64_t m = m0; op_.bias != nullptr && m < m1; m += kPiece) {
    const int64_t n = std::min(kPiece, m1 - m);
    const char* bias = static_cast<const char*>(op_.bias) +
                       (bias_on_rows_ ? m : v) * op_.bias_stride * kbias_.item_bytes;
    kbias_.gather(bias, bias_on_rows_ ? op_.bias_stride : 0, n, op_.conj_a, gathered);
    ka_.add(gathered, n, sums + acc(m - m0));
  }
  kc_.finish(sums, m1 - m0, nullptr, op_.scale, op_.conj_a, false,
             at.c + (c_[v] + m0 * m_c_) * kc_.item_bytes, m_c_);
}

// One dot product of each item. Operands of two dtypes are first gathered in that of the sums.
class Dots {
 public:
  explicit Dots(const Contraction& op);
  void run() const;

  static bool takes(const Contraction& op);

 private:
  void range(int64_t first, int64_t last) const;
  // Rows of an operand, or where they were gathered.
  const char* rows(const char* from, Dtype dtype, int64_t& step, int64_t count,
                   char* gathered) const;

  const Contraction& op_;
  const bool same_;  // dtype of both operands
  const FormKernelSet &ka_, &kc_;
  const FormKernelSet& kernels_;  // of the dots
  const Dim inner_;               // of the batch
  const int64_t depth_;
};

Dots::Dots(const Contraction& op)
    : op_(op),
      same_(op.dtype_a == op.dtype_b),
      ka_(form_kernels(op.dtype_a)),
      kc_(form_kernels(op.dtype_c)),
      kernels_(same_ ? ka_ : form_kernels(Dtype::kFloat32)),
      inner_(innermost(op.batch)),
      depth_(op.k[0].size) {}

bool Dots::takes(const Contraction& op) {
  const bool plain = op.s == nullptr && op.fold == Fold::kNone && op.bias == nullptr;
  if (!plain || op.k.count != 1 || op.m.numel() != 1 || op.n.numel() != 1) return false;
  const Dim& k = op.k[0];
  return k.a == 1 && k.b == 1 && k.size > 0 && k.size <= form_kernels(op.dtype_a).dot_cols;
}

void Dots::run() const {
  parallel_for(0, op_.batch.numel(), std::max<int64_t>(1, kGrain / depth_),
               [&](int64_t first, int64_t last) { range(first, last); });
}

const char* Dots::rows(const char* from, Dtype dtype, int64_t& step, int64_t count,
                       char* gathered) const {
  if (same_ || dtype == Dtype::kFloat32) return from;
  const FormKernelSet& kernels = form_kernels(dtype);
  for (int64_t i = 0; i < count; ++i) {
    kernels.gather(from + i * step * kernels.item_bytes, 1, depth_, false,
                   gathered + i * depth_ * kernels.acc_bytes);
  }
  step = depth_;
  return gathered;
}

// Items [first, last), by runs along the innermost dimension of the batch.
void Dots::range(int64_t first, int64_t last) const {
  const int64_t most = same_ ? kDotRun : std::max<int64_t>(1, kPiece / depth_);
  Scratch& scratch = Scratch::local();
  const int64_t sums_bytes = most * ka_.acc_bytes,
                row_bytes = same_ ? 0 : most * depth_ * ka_.acc_bytes;
  scratch.reserve(Scratch::size_of<char>(sums_bytes) + 2 * Scratch::size_of<char>(row_bytes));
  char* const sums = scratch.take<char>(sums_bytes);
  char* const gathered_a = scratch.take<char>(row_bytes);
  char* const gathered_b = scratch.take<char>(row_bytes);
  while (first < last) {
    const int64_t count = std::min({most, last - first, inner_.size - first % inner_.size});
    const Item at = item_of(op_, first);
    int64_t step_a = inner_.a, step_b = inner_.b;
    const char* const a = rows(at.a, op_.dtype_a, step_a, count, gathered_a);
    const char* const b = rows(at.b, op_.dtype_b, step_b, count, gathered_b);
    std::memset(sums, 0, static_cast<size_t>(count * ka_.acc_bytes));
    kernels_.row_dots(a, step_a, b, step_b, op_.conj_a != op_.conj_b, count, depth_, sums);
    kc_.finish(sums, count, nullptr, op_.scale, op_.conj_a, false, at.c, inner_.c);
    first += count;
  }
}

// C[m, n] = A[m] B[n], or A[m] B[m, n]; columns of C contiguous.
class Outer {
 public:
  // op.m and op.n have one dimension or none, op.k none; B may step along m.
  explicit Outer(const Contraction& op);
  void run() const;

 private:
  void rows(const Item& at, int64_t first, int64_t last) const;

  const Contraction& op_;
  const FormKernelSet &ka_, &kb_, &kc_;
  const int64_t rows_, cols_, m_a_, m_b_, n_b_, m_c_;
  const bool in_place_;  // B is read where it lies
};

Outer::Outer(const Contraction& op)
    : op_(op),
      ka_(form_kernels(op.dtype_a)),
      kb_(form_kernels(op.dtype_b)),
      kc_(form_kernels(op.dtype_c)),
      rows_(op.m.numel()),
      cols_(op.n.numel()),
      m_a_(step_of(op.m, &Dim::a)),
      m_b_(step_of(op.m, &Dim::b)),
      n_b_(step_of(op.n, &Dim::b)),
      m_c_(step_of(op.m, &Dim::c)),
      in_place_((n_b_ == 1 || cols_ == 1) && kb_.item_bytes == kb_.acc_bytes && !op.conj_b) {}

void Outer::run() const {
  const int64_t items = op_.batch.numel();
  parallel_for(0, items * rows_, std::max<int64_t>(1, kGrain / cols_),
               [&](int64_t first, int64_t last) {
                 while (first < last) {
                   const int64_t item = first / rows_, begin = item * rows_;
                   const int64_t end = std::min(last, begin + rows_);
                   rows(item_of(op_, item), first - begin, end - begin);
                   first = end;
                 }
               });
}

// Piece by piece, each with its part of the vectors in L1.
void Outer::rows(const Item& at, int64_t first, int64_t last) const {
  const bool across = !in_place_ && m_b_ == 1;  // B is transposed on the way
  const int64_t piece_n = std::min(across ? kAcross : kPiece, cols_);
  const int64_t piece_m = in_place_ || m_b_ == 0 ? kPiece : kPiece / piece_n;
  Scratch& scratch = Scratch::local();
  scratch.reserve(Scratch::size_of<char>(kPiece * ka_.acc_bytes) +
                  Scratch::size_of<char>(kPiece * kb_.acc_bytes));
  char* left = scratch.take<char>(kPiece * ka_.acc_bytes);
  char* gathered = scratch.take<char>(kPiece * kb_.acc_bytes);
  for (int64_t i = first; i < last; i += piece_m) {
    const int64_t m = std::min(piece_m, last - i);
    ka_.gather(at.a + i * m_a_ * ka_.item_bytes, m_a_, m, op_.conj_a, left);
    for (int64_t j = 0; j < cols_; j += piece_n) {
      const int64_t n = std::min(piece_n, cols_ - j);
      const char* right = at.b + (i * m_b_ + j * n_b_) * kb_.item_bytes;
      int64_t step = m_b_;
      if (!in_place_) {
        for (int64_t r = 0; r < (m_b_ == 0 ? 1 : m); ++r) {
          kb_.gather(right + r * m_b_ * kb_.item_bytes, n_b_, n, op_.conj_b,
                     gathered + r * n * kb_.acc_bytes);
        }
        right = gathered;
        step = m_b_ == 0 ? 0 : n;
      }
      kc_.outer(left, right, step, m, n, nullptr, false, at.c + (i * m_c_ + j) * kc_.item_bytes,
                m_c_);
    }
  }
}

int64_t max_dots(Dtype dtype, int64_t depth) {
  if (dtype == Dtype::kBFloat16) return std::clamp<int64_t>(depth / kPairsPerDot, 1, kMaxDots);
  return depth >= kShortDot && !is_complex(dtype) ? kMaxDots : kMaxSums;
}

int64_t max_sums(const Contraction& op) {
  const int64_t size = dtype_size(op.dtype_a);
  if (op.m.numel() * op.k[0].size * size >= kFarBytes) {
    return is_complex(op.dtype_a) ? kMaxFarComplexSums : kMaxFarSums;
  }
  const bool by_tile = op.dtype_a == Dtype::kFloat32 || op.dtype_a == Dtype::kFloat64;
  const bool panels = op.n.numel() > gemm_kernels<float>().mr;
  return by_tile && panels && op.k[0].a * size % kCollidingLines == 0 ? kMaxCollidingSums
                                                                      : kMaxSums;
}

// Whether A has a dimension along which its kernel can walk. One row may step as it likes. The
// vectors may lie in several dimensions, the rows may not.
bool walkable(const Contraction& op) {
  if (op.m.count > 1) return false;
  const int64_t k_a = op.k[0].a, m_a = step_of(op.m, &Dim::a);
  const int64_t most = k_a == 1 ? max_dots(op.dtype_a, op.k[0].size) : max_sums(op);
  return op.n.numel() <= most && (k_a == 1 || m_a == 1 || op.m.count == 0);
}

// As it is, or transposed, in which case `transposed` is used for it: A is the larger operand, and
// contiguous along the depth where they are alike.
const Contraction* as_few_vectors(const Contraction& op, Contraction& transposed) {
  const int64_t m = op.m.numel(), n = op.n.numel();
  const bool larger = m > n || (m == n && op.k[0].a == 1);
  if (larger && walkable(op)) return &op;
  transposed = op;
  transpose(transposed);
  if (walkable(transposed)) return &transposed;
  return walkable(op) ? &op : nullptr;
}

}  // namespace

bool contract_dots(const Contraction& op) {
  if (!Dots::takes(op)) return false;
  Dots(op).run();
  return true;
}

bool contract_vectors(const Contraction& op) {
  const bool plain =
      op.s == nullptr && op.fold == Fold::kNone && (op.bias == nullptr || op.scale == 1);
  if (!plain || op.k.count > 1) return false;
  const int64_t m = op.m.numel(), n = op.n.numel();
  const bool outer = op.k.count == 0;
  if (outer ? op.bias != nullptr || op.scale != 1
            : op.k[0].size == 0 || std::min(m, n) > kMaxVectors) {
    return false;
  }
  Contraction split = op;
  if (op.m.count > 1 && (outer || n <= kMaxNear)) split_outer(split.m, split.batch);
  if (op.n.count > 1 && (outer || m <= kMaxNear)) split_outer(split.n, split.batch);
  Contraction transposed;
  if (outer) {
    const bool across = n == 1 || step_of(split.n, &Dim::c) != 1;  // rows of C, or its columns
    if (across && m > 1) {
      transposed = split;
      transpose(transposed);
    }
    Contraction& rows = across && m > 1 ? transposed : split;
    if (rows.n.count == 1 && step_of(rows.n, &Dim::c) != 1) return false;
    if (rows.m.count == 0 && rows.batch.count > 0) {  // numbers times rows: of a batch, all at once
      rows.m.push(rows.batch[--rows.batch.count]);
    }
    Outer(rows).run();
    return true;
  }
  const Contraction* rows = as_few_vectors(split, transposed);
  if (rows == nullptr) return false;
  FewVectors(*rows, rows == &transposed).run();
  return true;
}

}  // namespace matcalc::cpu
