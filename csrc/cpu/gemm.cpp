// The blocked product. For each block of nc columns and kc of depth, B is packed into panels that
// stay in L2; each panel of mr rows of A (packed, or read where it lies) then meets every panel of
// B in the register tile.
//
//   for rows as many as are packed at a time
//     for columns in groups of blocks    C group: straight in C, or in a float buffer
//       for depth in blocks of kc        A packed, where it is: once for the group
//         for columns in blocks of nc    B block packed: kc x nc, a part of L2
//           for rows in panels of mr     A panel: mr x kc, a third of L1
//             for columns in panels of nr: tile
//
// The depth alone says how it is cut into blocks, and these are added in ascending order, so an
// element of C is the same sum however the rest of the product is cut up. Low precisions and
// results that are not stored by contiguous rows are summed in a buffer and rounded once.
#include "gemm.h"

#include <algorithm>

#include "../offsets.h"
#include "caches.h"
#include "scratch.h"

namespace matcalc::cpu {
namespace {

using Dim = ContractionDim;

// Where C waits in the buffer for the next block of depth: the rows in hand at a time, and the
// bytes of C of a group of columns, so that each packed panel of A serves five blocks of columns.
constexpr int64_t kRows = 512;
constexpr int64_t kGroupBytes = 11 << 18;  // 2.75 MiB
// The rows where A need not be packed, and more of them cost B's packing less often (bfloat16 at n
// = 4096, by tiles: 20 to 30 % faster).
constexpr int64_t kRowsInPlace = 2048;
// Elsewhere A is packed once for so many columns. (Packed again for each group of 2.75 MiB of C, in
// parts of 512 rows for which B was packed again, A^T B at n = 2048 took 12 % longer.)
constexpr int64_t kGroupCols = 8192;
// An A of more bytes is packed even where it could be read in place: its rows, far apart, come into
// L1 later than packed panels do (at n = 2048 float64 takes 3 % longer, complex128 20 %; in place,
// an A of 2 to 8 MiB is 2 to 4 % faster).
constexpr int64_t kInPlaceBytes = 8 << 20;
// A packed B of no more bytes is kept for all rows, if it is in one block of depth.
constexpr int64_t kKeptBytes = 8 << 20;
// Of C, where it is summed in the buffer and B is as deep as it gets: half of L1.
constexpr int64_t kBufferBytes = 16 * 1024;
// How many times as many columns as others a block may have that is less deep.
constexpr int64_t kMostWider = 4;
// Up to so many panels of A, packing B costs more than it saves; unless its rows are multiples of
// so many bytes apart, so that L2 does not hold them for the second panel (24 x 4096 x 4096: half
// the speed).
constexpr int64_t kUnpackedPanels = 3;
constexpr int64_t kCollidingRows = 8192;
// Nor is a B packed for any number of panels that stays in L2, its rows no more bytes apart than
// the processor sees coming: n = 128 gains 10 %, 256 and 384 5 %, a batch of 64 x 64 20 %. (With
// rows 4 KiB apart, which L1 has but eight or twelve lines for, n = 512 took twice as long in
// float64.)
constexpr int64_t kForeseenStep = 2048;
// Row steps that are multiples of so many bytes map the rows of a panel to few sets of L1. Where a
// set holds more lines than a panel has rows, with room for B, such rows are as good as others, and
// reading them in place saves the time of packing them: with 12 ways 5 to 9 % of a product,
// 1024 x 1024.
constexpr int64_t kCollidingStep = 1024;
// The processor remembers where about 2048 pages of 4 KiB lie, in a table in which pages share a
// place by the lowest bits of their number: of lines whose distances a power of two divides, so
// many bytes over that power. A panel that has more of them is read once, into a packed one (at
// 256 x 16384, transposed, by 256 x 64 float32 takes half the time).
constexpr int64_t kReach = 8 << 20;

// Items of no more bytes (half of a small L2) are fetched early, of batches of more.
constexpr int64_t kUpcomingBytes = 256 << 10, kUpcomingFrom = 1 << 20;

template <class T>
constexpr Dtype native() {
  if (std::is_same_v<T, Complex<double>>) return Dtype::kComplex128;
  if (std::is_same_v<T, Complex<float>>) return Dtype::kComplex64;
  return std::is_same_v<T, double> ? Dtype::kFloat64 : Dtype::kFloat32;
}

// A packed block of B takes three eighths of L2 (with half of it products were 1 to 2 % slower,
// with a quarter 1 %), or of one MiB where that is more.
int64_t block_bytes() { return std::max<int64_t>(caches().l2_bytes, 1 << 20) / 8 * 3; }

// Around the tiles that a thread computes in a row.
class TileState {
 public:
  TileState(void (*begin)(), void (*end)()) : end_(end) {
    if (begin != nullptr) begin();
  }
  ~TileState() {
    if (end_ != nullptr) end_();
  }
  TileState(const TileState&) = delete;
  TileState& operator=(const TileState&) = delete;

 private:
  void (*end_)();
};

// A generated operand is conjugated where it is packed.
template <class T, class P>
typename GemmKernels<T, P>::Tile tile_of(const GemmKernels<T, P>& kernels, const Contraction& op) {
  const bool conj_a = op.conj_a && op.s == nullptr;
  if (conj_a) return op.conj_b ? kernels.tile_conj_ab : kernels.tile_conj_a;
  return op.conj_b ? kernels.tile_conj_b : kernels.tile;
}

}  // namespace

template <class T, class P>
struct Product<T, P>::Block {
  int64_t max_rows, max_group, max_cols;  // in hand at a time
  int64_t packed_rows;                    // rows of A that are packed at a time
  int64_t sharing;                        // panels of A whose rows share lines of memory
  int64_t n0, group;                      // a group of columns, n0 ... n0 + group
  int64_t j0, cols;                       // a block of them, n0 + j0 ... n0 + j0 + cols
  PackOffsets offsets;                    // of them, and of a block of the depth
  bool b_in_place;
  bool b_kept;          // each block of B is packed once, for all rows
  bool stored_early;    // C is summed in the buffer and has but one block of depth
  int64_t buffer_rows;  // of C, in the buffer at a time
  bool accumulate;      // C holds the sums of the blocks of depth before
  const P* b;           // packed panels, or B itself
  int64_t ldb;
  P* packed_b;  // [cols / nr][packed depth][nr], b_kept: of the whole group
  P* packed_a;  // [packed rows / mr][packed depth][mr]
  T* buffer;    // [buffer rows][ld_buffer]
  int64_t ld_buffer;
  Upcoming upcoming;
  T* bias;       // [max_group], or [mr][nr] where it runs along m
  int64_t* n_c;  // [max_group]
};

template <class T, class P>
Product<T, P>::Product(const Contraction& op, const GemmKernels<T, P>& kernels, bool bias_on_rows)
    : op_(op),
      kernels_(kernels),
      steps_(op),
      packing_(op, kernels, steps_),
      bias_on_rows_(bias_on_rows),
      tile_(tile_of(kernels, op)),
      rows_(op.m.numel()),
      cols_(op.n.numel()),
      depth_(op.k.numel()),
      size_a_(dtype_size(op.dtype_a)),
      size_b_(dtype_size(op.dtype_b)),
      size_c_(dtype_size(op.dtype_c)),
      size_(dtype_size(op.dtype)) {
  a_in_place_ = a_readable_in_place() && reads_a_in_place();
  b_readable_in_place_ = kPair == 1 && op.dtype_b == native<T>() && op.fold == Fold::kNone &&
                         (steps_.n_b == 1 || cols_ == 1) && steps_.k_b != kNoStep;
  c_in_place_ =
      op.dtype_c == native<T>() && (steps_.n_c == 1 || cols_ == 1) && steps_.m_c != kNoStep;
  if (rows_ > 0 && cols_ > 0 && depth_ > 0) plan_fetching();
}

// Whether the tile can read A as it lies in memory.
template <class T, class P>
bool Product<T, P>::a_readable_in_place() const {
  if (op_.s != nullptr || op_.scale != 1 || steps_.m_a == kNoStep) return false;
  if constexpr (kPair == 1) return op_.dtype_a == native<T>() && steps_.k_a != kNoStep;
  // Neighbours along the depth are pairs as they lie, if none begins between two others.
  bool pairs = steps_.k_a == 1 && depth_ % (kPair * kernels_.depth_step) == 0 &&
               steps_.m_a % kPair == 0 && reinterpret_cast<uintptr_t>(op_.a) % sizeof(P) == 0;
  for (const Dim& dim : op_.batch) pairs = pairs && dim.a % kPair == 0;
  return pairs;
}

// Whether an A that the tile can read as it lies is not packed.
template <class T, class P>
bool Product<T, P>::reads_a_in_place() const {
  const int64_t row_bytes = steps_.m_a * size_a_, col_bytes = steps_.k_a * size_a_;
  if (!kernels_.row_tiles && cols_ > 4 * kernels_.nr) {
    // Each panel of A is read once for every panel of B: worth packing when its lines do not stay
    // in L1 together, or when a step along k goes to another line each time.
    if (steps_.k_a != 1 || rows_ * depth_ * size_a_ > kInPlaceBytes ||
        (row_bytes % kCollidingStep == 0 && kernels_.mr >= caches().l1_ways)) {
      return false;
    }
  }
  if (kPair == 1 && steps_.m_a == 1 && rows_ > kernels_.mr) {
    return std::min(depth_block(), depth_) * (col_bytes & -col_bytes) < kReach;
  }
  return true;
}

// What compute_items fetches of the items to come: all of some small ones, or the next one's A, B.
template <class T, class P>
void Product<T, P>::plan_fetching() {
  ahead_ = {op_.batch.numel(), small_span(rows_, steps_.m_a, depth_, steps_.k_a, size_a_),
            small_span(depth_, steps_.k_b, cols_, steps_.n_b, size_b_),
            small_span(rows_, steps_.m_c, cols_, steps_.n_c, size_c_)};
  if (ahead_.bytes() > 0 || op_.s != nullptr || op_.fold != Fold::kNone) return;
  const int64_t a = rows_ * depth_ * size_a_, b = depth_ * cols_ * size_b_;
  if (a + b <= kUpcomingBytes && op_.batch.numel() * (a + b) > kUpcomingFrom) {
    upcoming_a_ = small_span(rows_, steps_.m_a, depth_, steps_.k_a, size_a_, 2 * a);
    upcoming_b_ = small_span(depth_, steps_.k_b, cols_, steps_.n_b, size_b_, 2 * b);
  }
}

template <class T, class P>
typename Product<T, P>::Item Product<T, P>::operands(int64_t item) const {
  return {static_cast<const char*>(op_.a) + offset_of(op_.batch, &Dim::a, item) * size_a_,
          op_.s == nullptr
              ? nullptr
              : static_cast<const char*>(op_.s) + offset_of(op_.batch, &Dim::s, item) * size_,
          static_cast<const char*>(op_.b) + offset_of(op_.batch, &Dim::b, item) * size_b_,
          static_cast<char*>(op_.c) + offset_of(op_.batch, &Dim::c, item) * size_c_};
}

template <class T, class P>
void Product<T, P>::compute(int64_t item, int64_t m0, int64_t m1, int64_t n0, int64_t n1) const {
  if (m0 >= m1 || n0 >= n1) return;
  Block block = plan(m1 - m0, n1 - n0);
  const TileState state(kernels_.begin, kernels_.end);
  compute_blocks(block, operands(item), m0, m1, n0, n1);
}

template <class T, class P>
void Product<T, P>::compute_items(int64_t begin, int64_t end) const {
  if (rows_ == 0 || cols_ == 0) return;
  Block block = plan(rows_, cols_);
  const TileState state(kernels_.begin, kernels_.end);
  Item item = operands(begin);
  for (int64_t i = begin; i < end; ++i) {
    if (ahead_.bytes() > 0 && i + Ahead::kItems < end) {
      const Item later = operands(i + Ahead::kItems);
      ahead_.fetch_item(later.a, later.b, later.c);
    }
    const Item next = i + 1 < end ? operands(i + 1) : item;
    if (upcoming_a_ + upcoming_b_ > 0) {
      block.upcoming = Upcoming(next.b, next.b == item.b ? 0 : upcoming_b_, next.a,
                                next.a == item.a ? 0 : upcoming_a_, ceil_div(rows_, kernels_.mr));
    }
    compute_blocks(block, item, 0, rows_, 0, cols_);
    item = next;
  }
}

// Whether a B that the tile can read as it lies is not packed for so many rows and columns.
template <class T, class P>
bool Product<T, P>::reads_b_in_place(int64_t rows, int64_t cols) const {
  const int64_t step = steps_.k_b * size_b_, bytes = ((depth_ - 1) * steps_.k_b + cols) * size_b_;
  if (step >= 0 && step <= kForeseenStep && bytes <= caches().l2_bytes / 2) return true;
  const int64_t panels = step % kCollidingRows == 0 ? 1 : kUnpackedPanels;
  return rows <= panels * tile_rows();
}

// The sizes of the blocks for so many rows and columns.
template <class T, class P>
typename Product<T, P>::Block Product<T, P>::plan(int64_t rows, int64_t cols) const {
  const int64_t mr = kernels_.mr, nr = kernels_.nr;
  const int64_t all_cols = round_up(cols, nr), depth = std::min(depth_block(), depth_);
  Block block{};
  block.b_in_place = b_readable_in_place_ && reads_b_in_place(rows, cols);
  const bool one_depth = depth == depth_;
  block.stored_early = !c_in_place_ && one_depth;
  // A block that is less deep than others has more columns.
  const int64_t packed = std::max<int64_t>(kernels_.packed_depth(depth), 1);
  const int64_t wider = kernels_.packed_depth(depth_block()) / packed;
  const int64_t block_cols = kernels_.block_cols(block_bytes());
  block.max_cols = std::min(all_cols, block_cols * (one_depth ? std::min(wider, kMostWider) : 1));
  block.max_rows = rows;
  block.max_group = block.max_cols;
  if (!c_in_place_ && !one_depth) {
    const int64_t most = a_in_place_ ? kRowsInPlace : kRows;
    block.max_rows = std::min(most / mr * mr, rows);
    const int64_t row_bytes = block.max_rows * static_cast<int64_t>(sizeof(T));
    const int64_t blocks = std::max<int64_t>(1, kGroupBytes / (row_bytes * block.max_cols));
    block.max_group = std::min(blocks * block.max_cols, all_cols);
  } else if (all_cols > block.max_cols) {
    if (!a_in_place_) {
      const int64_t row_bytes = packed * static_cast<int64_t>(sizeof(P));
      const int64_t most = std::max<int64_t>(kernels_.packed_bytes / row_bytes, mr);
      block.max_rows = std::min(most / mr * mr, rows);
    }
    block.max_group =
        std::min(std::max(kGroupCols / block.max_cols, int64_t{1}) * block.max_cols, all_cols);
  }
  block.b_kept = one_depth && block.max_group == all_cols && block.max_rows < rows &&
                 all_cols * packed * static_cast<int64_t>(sizeof(P)) <= kKeptBytes;
  const bool again = block.max_group > block.max_cols;  // the same rows of A, for other columns
  // Where the rows of A are neighbours, a line of memory holds those of several panels. From four
  // on (numbers of two bytes) they are packed together; with two it is the slower way, unless the
  // lines do not stay in L1 until the next panel comes for the rest of them. What is packed for
  // several blocks of columns is packed four lines at a time, and so are such lines (float32, depth
  // 256, 64 to 128 columns: 5 to 25 %).
  const bool neighbours =
      !a_in_place_ && steps_.m_a == 1 && steps_.k_a != 1 && steps_.k_a != kNoStep;
  const bool lost =
      neighbours && steps_.k_a * size_a_ % kCollidingLines == 0 && mr * size_a_ < kLine;
  const int64_t shared = (again || lost ? 4 * kLine : kLine) / (mr * size_a_);
  block.sharing = neighbours && shared >= 4 ? shared : 1;
  const int64_t together = block.sharing * mr;
  // Of an A in place it is the last panel, if anything.
  block.packed_rows = round_up(again && !a_in_place_ ? block.max_rows : mr, together);
  block.buffer_rows = block.max_rows;
  if (block.stored_early) {
    const int64_t row_bytes = block.max_cols * static_cast<int64_t>(sizeof(T));
    const int64_t some = std::max<int64_t>(kBufferBytes / row_bytes, 1);
    block.buffer_rows = std::min(round_up(some, mr), rows);
  }
  reserve(block, rows, cols);
  return block;
}

// The working memory of the blocks.
template <class T, class P>
void Product<T, P>::reserve(Block& block, int64_t rows, int64_t cols) const {
  const int64_t mr = kernels_.mr, nr = kernels_.nr, group = block.max_group;
  const int64_t depth = std::min(depth_block(), depth_), packed = kernels_.packed_depth(depth);
  const bool b_packed = !block.b_in_place, all_in_place = in_place(mr) && in_place(rows % mr);
  const int64_t size_b = b_packed ? (block.b_kept ? group : block.max_cols) * packed : 0;
  const int64_t size_m = all_in_place ? 0 : block.packed_rows;
  const int64_t size_a = size_m * packed;
  const int64_t buffer_cols = block.stored_early ? block.max_cols : group;
  const int64_t size_buffer = c_in_place_ ? 0 : block.buffer_rows * buffer_cols;
  const int64_t size_k = b_packed || !a_in_place_ ? depth : 0, size_n = b_packed ? group : 0;
  const int64_t size_bias = op_.bias == nullptr ? 0 : bias_on_rows_ ? mr * nr : group;
  Scratch& scratch = Scratch::local();
  scratch.reserve(Scratch::size_of<P>(size_b) + Scratch::size_of<P>(size_a) +
                  Scratch::size_of<T>(size_buffer) + Scratch::size_of<T>(size_bias) +
                  Scratch::size_of<int64_t>(group) + PackOffsets::bytes(size_k, size_n, size_m));
  block.packed_b = scratch.template take<P>(size_b);
  block.packed_a = scratch.template take<P>(size_a);
  block.buffer = scratch.template take<T>(size_buffer);
  block.ld_buffer = steps_.m_c == cols ? std::min(buffer_cols, cols) : buffer_cols;  // as a dense C
  block.bias = scratch.template take<T>(size_bias);
  block.n_c = scratch.template take<int64_t>(group);
  block.offsets.take(scratch, size_k, size_n, size_m);
}

template <class T, class P>
void Product<T, P>::compute_blocks(Block& block, const Item& item, int64_t m0, int64_t m1,
                                   int64_t n0, int64_t n1) const {
  for (int64_t i0 = m0; i0 < m1; i0 += block.max_rows) {
    const int64_t i1 = std::min(m1, i0 + block.max_rows);
    for (int64_t g0 = n0; g0 < n1; g0 += block.max_group) {
      block.n0 = g0;
      block.group = std::min(block.max_group, n1 - g0);
      packing_.load_cols(block.offsets, g0, g0 + block.group);
      block.accumulate = false;
      if (op_.bias != nullptr && !bias_on_rows_) {
        const char* bias = static_cast<const char*>(op_.bias) + g0 * op_.bias_stride * size_;
        kernels_.load(op_.dtype, block.group, bias, op_.bias_stride, block.bias);
      }
      int64_t k0 = 0;
      do {  // once for an empty depth: C is then the bias or zero
        packing_.load_depth(block.offsets, k0, std::min(depth_, k0 + depth_block()));
        for (block.j0 = 0; block.j0 < block.group; block.j0 += block.max_cols) {
          block.cols = std::min(block.max_cols, block.group - block.j0);
          load_b(block, item, i0 == m0);
          compute_panels(block, item, i0, i1);
        }
        block.accumulate = true;
        k0 += depth_block();
      } while (k0 < depth_);
      if (!c_in_place_ && !block.stored_early) store(item, i0, i1, 0, block.group, block);
    }
  }
}

// One block of columns and of depth: each panel of A meets each panel of B.
template <class T, class P>
void Product<T, P>::compute_panels(Block& block, const Item& item, int64_t i0, int64_t i1) const {
  const int64_t mr = kernels_.mr, nr = kernels_.nr;
  const int64_t depth = kernels_.packed_depth(block.offsets.depth);
  const int64_t step_b = block.b_in_place ? nr : nr * depth;
  const bool all_packed = block.j0 > 0 && (a_in_place_ || block.packed_rows >= i1 - i0);
  for (int64_t i = i0; i < i1; i += mr) {
    const int64_t rows = std::min(mr, i1 - i);
    block.upcoming.fetch_piece();
    const P* a;
    int64_t a_row = 1, a_col = mr;
    if (in_place(rows)) {
      a = reinterpret_cast<const P*>(item.a +
                                     (i * steps_.m_a + block.offsets.k0 * steps_.k_a) * size_a_);
      a_row = steps_.m_a / kPair;
      a_col = kPair == 1 ? steps_.k_a : 1;
    } else {
      const int64_t row = (i - i0) % block.packed_rows;
      if (row == 0 && block.offsets.depth > 0 && !all_packed) {
        packing_.pack_a(block.offsets, item.a, item.s, i, std::min(block.packed_rows, i1 - i),
                        block.sharing, block.packed_a);
      }
      a = block.packed_a + row * depth;
    }
    const int64_t in_buffer = (i - i0) % block.buffer_rows;
    T* c = block.buffer + in_buffer * block.ld_buffer + (block.stored_early ? 0 : block.j0);
    int64_t ldc = block.ld_buffer;
    if (c_in_place_) {
      c = reinterpret_cast<T*>(item.c) + i * steps_.m_c + (block.n0 + block.j0) * steps_.n_c;
      ldc = steps_.m_c;
    }
    Base base = block.accumulate ? Base{c, ldc, nr} : bias_of(i, rows, block);
    for (int64_t j = 0; j < block.cols; j += nr) {
      tile_(rows, std::min(nr, block.cols - j), depth, a, a_row, a_col, block.b + j / nr * step_b,
            block.ldb, c + j, ldc, base.first, base.row_step);
      base.first += base.panel_step;
    }
    if (block.stored_early && (in_buffer + mr >= block.buffer_rows || i + rows == i1)) {
      store(item, i - in_buffer, i + rows, block.j0, block.cols, block);
    }
  }
}

// B's block of columns and depth: packed, or where it lies.
template <class T, class P>
void Product<T, P>::load_b(Block& block, const Item& item, bool first_rows) const {
  if (block.b_in_place) {
    block.b = reinterpret_cast<const P*>(item.b) + (block.n0 + block.j0) * steps_.n_b +
              block.offsets.k0 * steps_.k_b;
    block.ldb = steps_.k_b;
  } else if (block.offsets.depth > 0) {
    P* const packed =
        block.packed_b + (block.b_kept ? block.j0 * kernels_.packed_depth(block.offsets.depth) : 0);
    if (first_rows || !block.b_kept) {
      packing_.pack_b(block.offsets, item.b, block.j0, block.cols, packed);
    }
    block.b = packed;
    block.ldb = kernels_.nr;
  }
}

// The bias as the first sums of a panel are added to it: that of its columns, for all rows the
// same; or that of its rows, each as often as a tile has columns.
template <class T, class P>
typename Product<T, P>::Base Product<T, P>::bias_of(int64_t i, int64_t rows,
                                                    const Block& block) const {
  if (op_.bias == nullptr) return {nullptr, 0, 0};
  const int64_t nr = kernels_.nr;
  if (!bias_on_rows_) return {block.bias + block.j0, 0, nr};
  for (int64_t row = 0; row < rows; ++row) {
    const int64_t at = (i + row) * op_.bias_stride * size_;
    kernels_.load(op_.dtype, nr, static_cast<const char*>(op_.bias) + at, 0, block.bias + row * nr);
  }
  return {block.bias, nr, 0};
}

// Rounds what is in the buffer into C: these rows, and columns j0 ... j0 + cols of the group.
template <class T, class P>
void Product<T, P>::store(const Item& item, int64_t m0, int64_t m1, int64_t j0, int64_t cols,
                          const Block& block) const {
  const int64_t n0 = block.n0 + j0, ld = block.ld_buffer;
  if (steps_.n_c == 1 && steps_.m_c == cols && ld == cols) {  // one run, however short the rows are
    kernels_.store(op_.dtype_c, (m1 - m0) * cols, block.buffer, item.c + m0 * cols * size_c_, 1);
    return;
  }
  // By runs of columns that lie one step apart.
  const bool runs = steps_.n_c == kNoStep;
  if (runs) offsets_of(op_.n, &Dim::c, n0, n0 + cols, block.n_c);
  const int64_t run = runs ? op_.n[op_.n.count - 1].size : cols;
  const int64_t step = runs ? op_.n[op_.n.count - 1].c : steps_.n_c, begun = n0 % run;
  for (int64_t i = m0; i < m1; ++i) {
    const T* row = block.buffer + (i - m0) * ld;
    char* c = item.c + offset_of(op_.m, &Dim::c, i) * size_c_;
    for (int64_t j = 0, count; j < cols; j += count) {
      count = std::min(cols - j, runs && j == 0 ? run - begun : run);
      char* to = c + (runs ? block.n_c[j] : n0 * steps_.n_c) * size_c_;
      kernels_.store(op_.dtype_c, count, row + j, to, step);
    }
  }
}

template class Product<float>;
template class Product<double>;
template class Product<Complex<float>>;
template class Product<Complex<double>>;
template class Product<float, BfPair>;

}  // namespace matcalc::cpu
