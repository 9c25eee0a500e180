// Forms of matrices of any size. Device code; form.cu plans and launches it.
//
// A group of threads walks one tile of A. The pieces of kFormRows rows are on their way to a thread
// at all times: as soon as one is used, the piece so many rows below is asked for. What the group
// has summed is the result where the tile is the whole matrix; else it goes to working memory, and
// form_finish adds up what the tiles have left: for tiles of 64 rows of floats, that is 1/64 of the
// bytes of A written and read again, mostly in L2.
#pragma once

#include "form.cuh"

namespace matcalc::cuda::forms {

constexpr int kTileThreads = 256;

// What of A the sums run over and which are made.
enum class Sums { kValue, kProducts, kTriangle };

// Blocks on a multiprocessor, which set the registers of a thread: 80 for three, of which 32 hold
// pieces on their way. Three blocks have 96 KB on their way, two have 64, and by Little's law a
// Hopper's share of the memory is 25 bytes in a nanosecond for some 800 of them. What is wider,
// has more columns or is loaded by the element takes more than 80, and so does the triangle.
template <class T, bool kVector, Sums kSums>
inline constexpr int kTileBlocks =
    kSums == Sums::kValue || (kSums == Sums::kProducts && kVector && std::is_same_v<T, float>) ? 3
                                                                                               : 2;

// y and p of the rows of a stage: of all groups together 8 KB each. p is apart for each warp along
// a row.
constexpr int kStageBytes = 8192;
template <class T>
inline constexpr int kStageSlots = kStageBytes / static_cast<int>(sizeof(Accumulator<T>));

// Where a group is. Kept in shared memory, out of the registers of the walk.
struct Place {
  enum Operand { kA, kY, kX, kG, kAlpha, kDy, kDx, kOperands };
  int64_t offset[kOperands];  // of the item in each operand
  int64_t item;
  int64_t row, col;    // the tile's first
  int32_t rows, cols;  // of the tile that there are
  int32_t row_tile, col_tile;
  bool real;  // of the last block, some groups may have no item
};

template <class T>
struct TileShared {
  using Acc = Accumulator<T>;
  alignas(16) Acc y[kStageSlots<T>];  // [members, stage_rows]
  alignas(16) Acc p[kStageSlots<T>];  // [members, warps along a row, stage_rows]
  alignas(16) Acc q[kTileThreads * Piece<T, sizeof(T) < 16>::kCols];  // [members, down, cols]
  Acc values[kTileThreads / 32];                                      // of the warps
  Place places[kTileThreads / 32];                                    // of the members
};

// ---------------------------------------------------------------------------------------------
// da = g y x^T

// Rows and columns of one item of da, from the first up to the last, by a group of `threads`
// threads of which `width` stand side by side.
template <class T, bool kVector>
__device__ __forceinline__ void outer_rows(const Outer& outer, int64_t item, int64_t first,
                                           int64_t last, int64_t first_col, int64_t last_col,
                                           int width, int thread, int threads) {
  using Acc = Accumulator<T>;
  using Run = Piece<T, kVector>;
  const int downs = threads / width;
  const int down = thread / width, across = thread - down * width;
  const int step = kVector ? 1 : width;
  const Factor<T> factor(outer.g, offset_at(outer.g.batch, item));
  const int64_t item_y = offset_at(outer.y.batch, item), item_x = offset_at(outer.x.batch, item);
  T* da = static_cast<T*>(outer.da) + offset_at(outer.batch_da, item);
  for (int64_t col = first_col + (kVector ? across * Run::kCols : across); col < last_col;
       col += width * Run::kCols) {
    const int64_t left = (last_col - col + step - 1) / step;
    const int count = left < Run::kCols ? static_cast<int>(left) : Run::kCols;
    Acc x[Run::kCols];
#pragma unroll
    for (int c = 0; c < Run::kCols; ++c) {
      x[c] = Acc{};
      if (c < count) x[c] = conjugate_if(true, load_entry<T>(outer.x, item_x, col + c * step));
    }
#pragma unroll 4
    for (int64_t row = first + down; row < last; row += downs) {
      const Acc y = factor.times(conjugate_if(true, load_entry<T>(outer.y, item_y, row)));
      Run run;
#pragma unroll
      for (int c = 0; c < Run::kCols; ++c) run.set(c, multiply(y, x[c]));
      run.store(da + row * outer.cols + col, step, count);
    }
  }
}

// A whole item by a group of form_tiles. Kept out of the way of its registers.
template <class T>
[[gnu::noinline]] __device__ void outer_item(const Outer& outer, int64_t item, int vector,
                                             int thread, int threads) {
  // As many threads side by side as have something to do, a power of two below the others.
  int width = threads;
  while (width > 8 && width / 2 * vector >= outer.cols) width /= 2;
  if constexpr (sizeof(T) < 16) {
    if (vector > 1) {
      outer_rows<T, true>(outer, item, 0, outer.rows, 0, outer.cols, width, thread, threads);
      return;
    }
  }
  outer_rows<T, false>(outer, item, 0, outer.rows, 0, outer.cols, width, thread, threads);
}

template <class T, bool kVector>
__global__ void __launch_bounds__(kTileThreads)
    form_outer(const __grid_constant__ Outer outer, const __grid_constant__ TilePlan plan,
               int64_t first_item) {
  const int group = plan.group(), member = static_cast<int>(threadIdx.x) / group;
  const unsigned tiles = static_cast<unsigned>(plan.tiles());
  const unsigned block = blockIdx.x / tiles, tile = blockIdx.x - block * tiles;
  const int64_t item = first_item + static_cast<int64_t>(block) * plan.members + member;
  if (item >= outer.items) return;
  const int64_t row_tile = tile / static_cast<unsigned>(plan.col_tiles);
  const int64_t col_tile = tile - row_tile * plan.col_tiles;
  const int64_t row = row_tile * plan.rows, col = col_tile * plan.cols;
  outer_rows<T, kVector>(outer, item, row, std::min(outer.rows, row + plan.rows), col,
                         std::min(outer.cols, col + plan.cols), plan.width,
                         static_cast<int>(threadIdx.x) - member * group, group);
}

// ---------------------------------------------------------------------------------------------
// A x, A^T y and y^T A x

template <class T, bool kVector, Sums kSums>
class TileWalk {
  using Acc = Accumulator<T>;
  using Run = Piece<T, kVector>;
  static constexpr int kCols = Run::kCols;
  static constexpr bool kProducts = kSums != Sums::kValue;
  static constexpr bool kTriangle = kSums == Sums::kTriangle;

 public:
  __device__ __forceinline__ TileWalk(const Walk& walk, const TilePlan& plan, TileShared<T>& shared,
                                      int64_t first_item)
      : walk_(walk), plan_(plan), shared_(shared) {
    member_ = static_cast<int>(threadIdx.x) / plan.group();
    thread_ = static_cast<int>(threadIdx.x) - member_ * plan.group();
    down_ = thread_ / plan.width;
    const int across = thread_ - down_ * plan.width;
    col_ = kVector ? across * kCols : across;
    step_ = kVector ? 1 : plan.width;
    find_place(first_item);
    __syncthreads();
  }

  // Of the triangle, a tile may have nothing: its value is then zero, its products are not read.
  __device__ __forceinline__ bool is_empty() const {
    const Place& at = place();
    if (walk_.triangle == Triangle::kLower) return at.col >= at.row + at.rows;
    return at.row >= at.col + at.cols;
  }
  __device__ __forceinline__ void leave_zero() const {
    if (plan_.alpha != nullptr && thread_ == 0) *value_part() = Acc{};
  }

  __device__ __forceinline__ void run() {
    if constexpr (kTriangle) {
      const Place& at = place();
      const bool lower = walk_.triangle == Triangle::kLower;
      const bool crosses = lower ? at.col + at.cols > at.row : at.row + at.rows > at.col;
      if (crosses) {
        sum_rows<true>();
      } else {
        sum_rows<false>();
      }
    } else {
      sum_rows<false>();
    }
    add_columns();
    if (down_ == 0) finish_columns();
    if (walk_.alpha.data != nullptr) finish_value();
  }

  __device__ __forceinline__ const Place& place() const { return shared_.places[member_]; }
  __device__ __forceinline__ int thread() const { return thread_; }

 private:
  // A thread for each operand: the divisions that several batch dimensions take run side by side.
  __device__ __forceinline__ void find_place(int64_t first_item) {
    if (thread_ >= Place::kOperands) return;
    const unsigned tiles = static_cast<unsigned>(plan_.tiles());
    const unsigned block = blockIdx.x / tiles, tile = blockIdx.x - block * tiles;
    const int64_t wanted = first_item + static_cast<int64_t>(block) * plan_.members + member_;
    const int64_t item = std::min(wanted, walk_.items - 1);
    const Offsets* const offsets = thread_ == Place::kA       ? &walk_.batch_a
                                   : thread_ == Place::kY     ? &walk_.y.batch
                                   : thread_ == Place::kX     ? &walk_.x.batch
                                   : thread_ == Place::kG     ? &walk_.g.batch
                                   : thread_ == Place::kAlpha ? &walk_.alpha.batch
                                   : thread_ == Place::kDy    ? &walk_.dy.batch
                                                              : &walk_.dx.batch;
    Place& place = shared_.places[member_];
    place.offset[thread_] = offsets->at(item);
    if (thread_ > 0) return;
    place.item = item;
    place.real = item == wanted;
    place.row_tile = static_cast<int>(tile / static_cast<unsigned>(plan_.col_tiles));
    place.col_tile = static_cast<int>(tile - place.row_tile * plan_.col_tiles);
    place.row = place.row_tile * plan_.rows;
    place.col = static_cast<int64_t>(place.col_tile) * plan_.cols;
    place.rows = static_cast<int>(std::min(plan_.rows, walk_.rows - place.row));
    place.cols = static_cast<int>(std::min<int64_t>(plan_.cols, walk_.cols - place.col));
  }

  // The thread's columns that there are.
  __device__ __forceinline__ int columns() const {
    const Place& at = place();
    if (!at.real || col_ >= at.cols) return 0;
    const int left = kVector ? kCols : (at.cols - col_ + plan_.width - 1) / plan_.width;
    return left < kCols ? left : kCols;
  }

  // The pieces that a thread takes of A, from the top of its tile to the bottom.
  struct Stream {
    const T* next;
    int64_t row, col;  // steps
    int left;          // rows
    int columns;
    // How far the next piece's first element is beyond the triangle: zero on the diagonal, negative
    // inside; and how much that changes with the thread's next row and its next column.
    int beyond, beyond_row, beyond_col;
  };

  template <bool kMasked>
  __device__ __forceinline__ void fetch(Stream& stream, Run& run) {
    const bool wanted = stream.left > 0;
    if constexpr (kMasked && kVector) {
      // The element that is farthest inside is the first or the last.
      const int nearest = stream.beyond_col > 0 ? stream.beyond : stream.beyond - (kCols - 1);
      run.load(stream.next, 1, wanted && nearest <= 0 ? stream.columns : 0);
    } else if constexpr (kMasked) {
#pragma unroll
      for (int c = 0; c < kCols; ++c) {
        const bool inside = c < stream.columns && stream.beyond + c * stream.beyond_col <= 0;
        run.raw.items[c] = wanted && inside ? stream.next[c * stream.col] : T{};
      }
    } else {
      run.load(stream.next, stream.col, wanted ? stream.columns : 0);
    }
    stream.next += stream.row;
    stream.left -= plan_.down;
    if constexpr (kMasked) stream.beyond += stream.beyond_row;
  }

  // The walk: leaves q in registers, each thread's of the rows that it has seen, and sees to p.
  template <bool kMasked>
  __device__ __forceinline__ void sum_rows() {
    // The diagonal takes registers.
    constexpr int kRows = kMasked ? kFormRows / 2 : kFormRows;
    const int rows = place().rows;
    Stream stream;
    stream.next = static_cast<const T*>(walk_.a) + place().offset[Place::kA] +
                  (place().row + down_) * walk_.row + (place().col + col_) * walk_.col;
    stream.row = plan_.down * walk_.row;
    stream.col = kVector ? 1 : plan_.width * walk_.col;
    stream.columns = columns();
    stream.left = rows - down_;
    if constexpr (kMasked) {
      const int sign = walk_.triangle == Triangle::kLower ? 1 : -1;
      stream.beyond = sign * (static_cast<int>(place().col - place().row) + col_ - down_);
      stream.beyond_row = -sign * plan_.down;
      stream.beyond_col = sign * step_;
    }
    Run runs[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) fetch<kMasked>(stream, runs[r]);

    Acc x[kCols];
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      q_[c] = Acc{};
      if constexpr (kProducts) x[c] = load_x(c, stream.columns);
    }
    value_ = Acc{};

    const int slot = slot_of_row<kRows>();

    const int round = kRows * plan_.down;
    Acc* const y = shared_.y + member_ * plan_.stage_rows;
    Acc* const p = stage_p();
    for (int stage = 0; stage < rows; stage += plan_.stage_rows) {
      const int stage_rows = std::min(plan_.stage_rows, rows - stage);
      if (stage > 0) __syncthreads();
      for (int i = thread_; i < plan_.stage_rows && i < stage_rows + round; i += plan_.group()) {
        y[i] = i < stage_rows
                   ? load_entry<T>(walk_.y, place().offset[Place::kY], place().row + stage + i)
                   : Acc{};
      }
      __syncthreads();
      for (int first = 0; first < stage_rows; first += round) {
        Acc parts[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          const Acc y_row = y[first + r * plan_.down + down_];
          parts[r] = Acc{};
#pragma unroll
          for (int c = 0; c < kCols; ++c) {
            Acc a = runs[r].at(c);
            if constexpr (kMasked) {
              // The stream is kRows pieces ahead.
              const int side = stream.beyond - kRows * stream.beyond_row + c * stream.beyond_col;
              if (side == 0) a = scaled(a, 0.5);
              if (side > 0) continue;  // where zero times an infinity must not be added
            }
            if constexpr (kProducts) parts[r] = multiply_add(a, x[c], parts[r]);
            q_[c] = multiply_add(a, y_row, q_[c]);
          }
          fetch<kMasked>(stream, runs[r]);
        }
        if constexpr (kProducts) {
          const Acc sum = sum_of_rows(parts, plan_.width < 32 ? plan_.width : 32);
          if (slot >= 0) p[first + slot] = sum;
        }
      }
      if constexpr (kProducts) {
        __syncthreads();
        add_products(stage, stage_rows);
      }
    }
  }

  // Of the lanes that stand along a round's rows, each row has one, which gets its sum: where in a
  // stage's p that one puts it, negative for the others.
  template <int kRows>
  __device__ __forceinline__ int slot_of_row() const {
    const int lanes = plan_.width < 32 ? plan_.width : 32, each = lanes / kRows;
    const int across = thread_ - down_ * plan_.width, warp = across / lanes;
    const int row = (across - warp * lanes) / each;
    const bool has_row = row * each == across - warp * lanes;
    return has_row ? warp * plan_.stage_rows + row * plan_.down + down_ : -1;
  }

  __device__ __forceinline__ Acc load_x(int c, int columns) const {
    if (c >= columns) return Acc{};
    const int64_t col = place().col + col_ + c * step_;
    return load_entry<T>(walk_.x, place().offset[Place::kX], col);
  }

  __device__ __forceinline__ int warps_along() const {
    return plan_.width <= 32 ? 1 : plan_.width / 32;
  }
  __device__ __forceinline__ Acc* stage_p() const {
    return shared_.p + member_ * warps_along() * plan_.stage_rows;
  }

  // p of the rows of a stage, each summed over the warps that stand along it.
  __device__ __forceinline__ void add_products(int stage, int rows) {
    const Place& at = place();
    Acc* const parts = stage_p();
    Acc* p = static_cast<Acc*>(plan_.p);
    if (p != nullptr) p += (at.item * plan_.col_tiles + at.col_tile) * walk_.rows;
    for (int i = thread_; i < rows; i += plan_.group()) {
      Acc sum = parts[i];
      for (int w = 1; w < warps_along(); ++w) sum = add(sum, parts[w * plan_.stage_rows + i]);
      const int64_t row = at.row + stage + i;
      if constexpr (kTriangle) {
        // Where a row meets nothing of the triangle, there is no zero to multiply by x.
        const bool meets =
            walk_.triangle == Triangle::kLower ? row >= at.col : row < at.col + at.cols;
        if (meets) {
          value_ = multiply_add(shared_.y[member_ * plan_.stage_rows + i], sum, value_);
        }
      }
      if (p != nullptr) {
        p[row] = sum;
      } else if (walk_.quadratic) {
        parts[i] = sum;  // waits for q
      } else if (at.real && walk_.dy.data != nullptr) {
        store_gradient<T>(walk_, walk_.dy, at.offset[Place::kDy], row, factor(), sum);
      }
    }
  }

  // Adds q over the threads that stand below each other, into the uppermost.
  __device__ __forceinline__ void add_columns() {
    Acc* q = shared_.q + member_ * plan_.down * plan_.cols + col_;
    if (down_ > 0) {
#pragma unroll
      for (int c = 0; c < kCols; ++c) q[down_ * plan_.cols + c * step_] = q_[c];
    }
    __syncthreads();  // also for the rows of p that wait for q
    if (down_ > 0) return;
    for (int d = 1; d < plan_.down; ++d) {
#pragma unroll
      for (int c = 0; c < kCols; ++c) q_[c] = add(q_[c], q[d * plan_.cols + c * step_]);
    }
  }

  // What the threads that have the columns' sums make of them: dx or its part, and x^T q.
  __device__ __forceinline__ void finish_columns() {
    const Place& at = place();
    const int count = columns();
    if (walk_.dx.data != nullptr && plan_.q == nullptr) {
#pragma unroll
      for (int c = 0; c < kCols; ++c) {
        if (c >= count) continue;
        const int col = col_ + c * step_;
        Acc sum = q_[c];
        // All rows of a square matrix that is one tile are in one stage.
        if (kProducts && walk_.quadratic) sum = add(stage_p()[col], sum);
        store_gradient<T>(walk_, walk_.dx, at.offset[Place::kDx], col, factor(), sum);
      }
    } else if (plan_.q != nullptr) {
      Acc* q = static_cast<Acc*>(plan_.q) + (at.item * plan_.row_tiles + at.row_tile) * walk_.cols +
               at.col + col_;
      store_columns(q, count);
    }
    if (walk_.alpha.data == nullptr) return;
#pragma unroll
    for (int c = 0; c < kCols; ++c) {
      bool wanted = c < count;
      if constexpr (kTriangle) {
        const int64_t col = at.col + col_ + c * step_;
        wanted =
            wanted && (walk_.triangle == Triangle::kLower ? col < at.row + at.rows : col >= at.row);
      }
      if (wanted) value_ = multiply_add(load_x(c, count), q_[c], value_);
    }
  }

  __device__ __forceinline__ void store_columns(Acc* q, int count) const {
    if constexpr (kVector) {
      constexpr int kPerStore = 16 / static_cast<int>(sizeof(Acc));
      if (count == 0) return;
#pragma unroll
      for (int c = 0; c < kCols; c += kPerStore) {
        Pack<Acc, kPerStore> out;
#pragma unroll
        for (int e = 0; e < kPerStore; ++e) out.items[e] = q_[c + e];
        *reinterpret_cast<Pack<Acc, kPerStore>*>(q + c) = out;
      }
    } else {
#pragma unroll
      for (int c = 0; c < kCols; ++c) {
        if (c < count) q[c * step_] = q_[c];
      }
    }
  }

  // alpha or its part: the sum over the threads of a group.
  __device__ __forceinline__ void finish_value() {
    const Acc sum = sum_of_lanes(value_, 32);
    const int warp = static_cast<int>(threadIdx.x) / 32;
    if (threadIdx.x % 32 == 0) shared_.values[warp] = sum;
    __syncthreads();
    if (thread_ > 0 || !place().real) return;
    Acc total = shared_.values[warp];
    for (int w = 1; w < plan_.group() / 32; ++w) total = add(total, shared_.values[warp + w]);
    if (plan_.alpha != nullptr) {
      *value_part() = total;
    } else {
      narrow(total, static_cast<T*>(walk_.alpha.data)[place().offset[Place::kAlpha]]);
    }
  }
  __device__ __forceinline__ Acc* value_part() const {
    const Place& at = place();
    return static_cast<Acc*>(plan_.alpha) + at.item * plan_.tiles() +
           at.row_tile * plan_.col_tiles + at.col_tile;
  }

  __device__ __forceinline__ Factor<T> factor() const {
    return Factor<T>(walk_.g, place().offset[Place::kG]);
  }

  const Walk& walk_;
  const TilePlan& plan_;
  TileShared<T>& shared_;
  int member_, thread_, down_;  // the group, the thread in it, and its row of threads
  int col_, step_;              // the thread's first column of the tile, and the way to its next
  Acc q_[kCols], value_;
};

template <class T, bool kVector, Sums kSums>
__global__ void __launch_bounds__(kTileThreads, (kTileBlocks<T, kVector, kSums>))
    form_tiles(const __grid_constant__ Walk walk, const __grid_constant__ TilePlan plan,
               const __grid_constant__ Outer outer, int outer_vector, int64_t first_item) {
  TileWalk<T, kVector, kSums> tile(walk, plan, shared_memory<TileShared<T>>(), first_item);
  if constexpr (kSums == Sums::kTriangle) {
    if (tile.is_empty()) {
      tile.leave_zero();
      return;
    }
  }
  tile.run();
  if (outer.da != nullptr && tile.place().real) {
    outer_item<T>(outer, tile.place().item, outer_vector, tile.thread(), plan.group());
  }
}

// ---------------------------------------------------------------------------------------------
// The second stage

// How form_finish makes one output: 2^slice_bits threads share the parts of an entry, neighbouring
// threads have neighbouring entries.
struct FinishPlan {
  int32_t slice_bits;
  int32_t blocks;  // of an item; 0 where the output is not wanted
};

// Adds those of the parts [first, last) of an entry, `step` apart, that fall to one slice.
template <class Acc>
__device__ __forceinline__ Acc add_slice(Acc sum, const Acc* parts, int64_t step, int64_t first,
                                         int64_t last, int slice, int slice_bits) {
  const int64_t count = last - first;
  const int64_t end = first + (count * (slice + 1) >> slice_bits);
#pragma unroll 8  // as many loads are on their way at a time
  for (int64_t part = first + (count * slice >> slice_bits); part < end; ++part) {
    sum = add(sum, parts[part * step]);
  }
  return sum;
}

// Four blocks leave 64 registers to a thread, enough for eight sums of 16 bytes on their way.
template <class T>
__global__ void __launch_bounds__(kTileThreads, 4)
    form_finish(const __grid_constant__ Walk walk, const __grid_constant__ TilePlan plan,
                FinishPlan dy, FinishPlan dx, FinishPlan alpha, int64_t first_item) {
  using Acc = Accumulator<T>;
  struct Shared {
    Acc sums[kTileThreads];
  };
  auto& shared = shared_memory<Shared>();
  const unsigned per_item = static_cast<unsigned>(dy.blocks + dx.blocks + alpha.blocks);
  const unsigned index = blockIdx.x / per_item;
  const int64_t item = first_item + index;
  int block = static_cast<int>(blockIdx.x - index * per_item);
  const bool makes_dy = block < dy.blocks;
  if (!makes_dy) block -= dy.blocks;
  const bool makes_dx = !makes_dy && block < dx.blocks;
  if (!makes_dy && !makes_dx) block -= dx.blocks;

  const int slice_bits = makes_dy ? dy.slice_bits : makes_dx ? dx.slice_bits : alpha.slice_bits;
  const int per_block = kTileThreads >> slice_bits;
  const int thread = static_cast<int>(threadIdx.x);
  const int slice = thread / per_block;
  const int64_t entry = static_cast<int64_t>(block) * per_block + thread - slice * per_block;
  const int64_t entries = makes_dy ? walk.rows : makes_dx ? walk.cols : 1;

  Acc sum{};
  if (entry < entries) {
    // Of a triangle, some tiles along a row or a column have nothing.
    const bool lower = walk.triangle == Triangle::kLower;
    if (makes_dy || (makes_dx && walk.quadratic)) {
      int64_t first = 0, last = plan.col_tiles;
      if (walk.triangle != Triangle::kNone) {
        const int64_t row = entry / plan.rows * plan.rows;
        if (lower) {
          last = std::min(last, (row + plan.rows - 1) / plan.cols + 1);
        } else {
          first = row / plan.cols;
        }
      }
      const Acc* p = static_cast<const Acc*>(plan.p) + item * plan.col_tiles * walk.rows + entry;
      sum = add_slice(sum, p, walk.rows, first, last, slice, slice_bits);
    }
    if (makes_dx) {
      int64_t first = 0, last = plan.row_tiles;
      if (walk.triangle != Triangle::kNone) {
        const int64_t col = entry / plan.cols * plan.cols;
        if (lower) {
          first = col / plan.rows;
        } else {
          last = std::min(last, (col + plan.cols - 1) / plan.rows + 1);
        }
      }
      const Acc* q = static_cast<const Acc*>(plan.q) + item * plan.row_tiles * walk.cols + entry;
      sum = add_slice(sum, q, walk.cols, first, last, slice, slice_bits);
    }
    if (!makes_dy && !makes_dx) {
      const Acc* values = static_cast<const Acc*>(plan.alpha) + item * plan.tiles();
      sum = add_slice(sum, values, 1, 0, plan.tiles(), slice, slice_bits);
    }
  }
  shared.sums[thread] = sum;
  for (int half = (1 << slice_bits) / 2; half > 0; half /= 2) {
    __syncthreads();
    if (slice < half) {
      sum = add(sum, shared.sums[thread + half * per_block]);
      shared.sums[thread] = sum;
    }
  }
  if (slice > 0 || entry >= entries) return;
  if (!makes_dy && !makes_dx) {
    narrow(sum, static_cast<T*>(walk.alpha.data)[offset_at(walk.alpha.batch, item)]);
    return;
  }
  const FormOutput& output = makes_dy ? walk.dy : walk.dx;
  store_gradient<T>(walk, output, offset_at(output.batch, item), entry,
                    Factor<T>(walk.g, offset_at(walk.g.batch, item)), sum);
}

}  // namespace matcalc::cuda::forms
