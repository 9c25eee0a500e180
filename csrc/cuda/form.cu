// Forms with a matrix of their own for each item: how a matrix is walked, which kernel takes it and
// how it is cut into tiles.
#include <utility>

#include "form_small.cuh"
#include "form_tiles.cuh"
#include "launch.cuh"

namespace matcalc::cuda {
namespace forms {
namespace {

// The widest tile: 512 columns are 1 to 4 KB of a row, long runs for the memory, and leave few sums
// of p, 1/512 of the elements.
constexpr int64_t kMaxTileCols = 512;
// A matrix of up to so many bytes is one tile: eight rounds of 256 threads, which is soon done even
// where there is only one. A second stage would cost about as much.
constexpr int64_t kSingleBytes = 256 * 1024;
// Rows of a tile, twice as many of 16-bit numbers. q of a tile is written and read again: with 64
// rows of floats, 1/64 of the bytes of A. Half as many rows where there would be too few tiles for
// a GPU of 100 and more multiprocessors; more rows where there are tiles enough.
constexpr int64_t kTileRows = 64;
constexpr int64_t kFewTiles = 256, kManyTiles = 1024;
// Parts of a sum that a thread of the second stage adds: as many loads are on their way at a time.
constexpr int64_t kSliceParts = 8;

// Lanes along a row: 8 or 16, so that a warp has several rows, or whole warps.
int64_t width_of(int64_t threads) {
  return threads <= 8 ? 8 : threads <= 16 ? 16 : round_up(threads, 32);
}

// `run`: columns of a thread. `size`: bytes of an element.
TilePlan plan_tiles(int64_t rows, int64_t cols, int64_t run, int64_t size, int64_t acc_size) {
  TilePlan plan{};
  const int64_t most = std::min<int64_t>(kTileThreads * run, kMaxTileCols);
  const int64_t width = width_of(ceil_div(ceil_div(cols, ceil_div(cols, most)), run));
  plan.width = static_cast<int32_t>(width);
  plan.cols = static_cast<int32_t>(width * run);
  plan.col_tiles = ceil_div(cols, plan.cols);
  // As many threads below each other as have a round of rows each, and as make whole warps.
  const int64_t downs = std::min(kTileThreads / width, ceil_div(rows, kFormRows));
  plan.down = static_cast<int32_t>(width < 32 ? round_up(downs, 32 / width) : downs);
  plan.members = 1;

  const int64_t round = kFormRows * plan.down;
  // Warps along a row have sums of p of their own. Of a square matrix that is one tile, at most 362
  // rows of 16-bit numbers or 128 of the widest, all fit one stage.
  const int64_t slots = kStageBytes / acc_size / std::max<int64_t>(1, width / 32);
  int64_t tile_rows = rows;
  if (plan.col_tiles > 1 || rows * cols * size > kSingleBytes) {
    const int64_t enough = kTileRows * (acc_size / size), strips = rows * plan.col_tiles;
    tile_rows = std::max({enough / 2, std::min(enough, strips / kFewTiles), strips / kManyTiles});
    tile_rows = std::min(rows, round_up(tile_rows, round));
  }
  plan.rows = tile_rows;
  plan.row_tiles = ceil_div(rows, tile_rows);
  plan.stage_rows =
      static_cast<int32_t>(std::min(round_up(tile_rows, round), slots / round * round));
  return plan;
}

// Several small items for each block, where that leaves enough blocks.
void share_blocks(TilePlan& plan, int64_t items, int64_t acc_size, const Device& device) {
  if (!plan.single()) return;
  const int64_t slots = kStageBytes / acc_size / std::max(1, plan.width / 32) / plan.stage_rows;
  const int64_t spare = items / (4 * std::max(1, device.limits().multiprocessors));
  plan.members = static_cast<int32_t>(
      std::max<int64_t>(1, std::min<int64_t>({kTileThreads / plan.group(), slots, spare})));
}

// Elements that can be read or written as one.
int64_t vector_of(const void* data, int64_t row, int64_t col, const Offsets& batch, int64_t rows,
                  int64_t cols, int64_t size) {
  const int64_t most = 16 / size;
  const bool fits = (col == 1 || cols == 1) && (rows == 1 || row % most == 0) && cols % most == 0 &&
                    steps_by(batch, most) && is_aligned(data, 16);
  return fits ? most : 1;
}

// Launches a kernel for all items: `members` of them share as many blocks.
template <class Kernel, class... Args>
void launch_items(const char* name, Kernel kernel, int64_t items, int64_t members,
                  int64_t blocks_of_members, int threads, size_t shared, const Device& device,
                  const Args&... args) {
  // Items of one launch, as many as a grid has room for.
  const int64_t most = std::max<int64_t>(1, kMaxGrid / blocks_of_members) * members;
  for (int64_t first = 0; first < items; first += most) {
    const int64_t blocks = ceil_div(std::min(most, items - first), members) * blocks_of_members;
    launch(name, kernel, blocks, threads, shared, device, args..., first);
  }
}

struct Problem {
  Walk walk;
  Outer outer;
  bool by_columns;
};

Problem make_problem(const Form& op, const Device& device, Workspace& workspace) {
  const auto offsets = [&](int64_t FormDim::* stride) {
    return make_offsets(op.batch, stride, device, workspace);
  };
  const auto input = [&](const void* data, int64_t stride, int64_t FormDim::* batch) {
    return FormInput{data, stride, data == nullptr ? Offsets{} : offsets(batch)};
  };
  const auto output = [&](void* data, int64_t stride, int64_t FormDim::* batch) {
    return FormOutput{data, stride, data == nullptr ? Offsets{} : offsets(batch)};
  };
  Problem problem{};
  Walk& walk = problem.walk;
  walk.items = op.batch.numel();
  walk.rows = op.rows;
  walk.cols = op.cols;
  walk.a = op.a;
  walk.row = op.a_row;
  walk.col = op.a_col;
  walk.batch_a = offsets(&FormDim::a);
  walk.y = input(op.y, op.y_stride, &FormDim::y);
  walk.x = input(op.x, op.x_stride, &FormDim::x);
  walk.g = input(op.g, 0, &FormDim::g);
  walk.alpha = output(op.alpha, 0, &FormDim::alpha);
  walk.dy = output(op.dy, op.dy_stride, &FormDim::dy);
  walk.dx = output(op.dx, op.dx_stride, &FormDim::dx);
  walk.dtype_d = op.dtype_d;
  walk.quadratic = op.quadratic;
  walk.triangle = op.symmetric ? Triangle::kLower : Triangle::kNone;
  problem.outer = {walk.items, op.rows, op.cols, walk.y, walk.x, walk.g, op.da, {}};
  if (op.da != nullptr) problem.outer.batch_da = offsets(&FormDim::da);

  // Along the contiguous dimension; where both or neither is, along the longer or the denser one.
  const bool col_unit = op.a_col == 1 || op.cols == 1;
  const bool row_unit = op.a_row == 1 || op.rows == 1;
  problem.by_columns =
      col_unit == row_unit ? (col_unit ? op.rows > op.cols : op.a_row < op.a_col) : row_unit;
  if (problem.by_columns) {
    std::swap(walk.rows, walk.cols);
    std::swap(walk.row, walk.col);
    std::swap(walk.y, walk.x);
    if (!op.quadratic) std::swap(walk.dy, walk.dx);  // a quadratic form has one gradient, dx
    if (op.symmetric) walk.triangle = Triangle::kUpper;
  }
  return problem;
}

template <class T>
void run_small(const Problem& problem, const Device& device) {
  const int64_t size = std::max(problem.walk.rows, problem.walk.cols);
  int lanes = 4;
  while (lanes < size) lanes *= 2;
  // Single warps where there are too few blocks for every multiprocessor.
  const int64_t blocks = problem.walk.items * lanes / kSmallThreads;
  const bool many = blocks >= device.limits().multiprocessors;
  const int threads = many ? kSmallThreads : 32;
  const auto start = [&](auto kernel) {
    launch_items("form_small", kernel, problem.walk.items, threads / lanes, 1, threads, 0, device,
                 problem.walk, problem.outer, problem.by_columns, lanes);
  };
  if (lanes == 4) {
    start(form_small<T, 4>);
  } else {
    start(form_small<T, 8>);
  }
}

template <class T, bool kVector>
void run_outer_kernel(const Outer& outer, TilePlan plan, const Device& device) {
  launch_items("form_outer", form_outer<T, kVector>, outer.items, plan.members, plan.tiles(),
               plan.group() * plan.members, 0, device, outer, plan);
}

template <class T>
void run_outer(const Outer& outer, int64_t vector, const Device& device) {
  using Acc = Accumulator<T>;
  const int64_t run = vector > 1 ? vector : Piece<T, false>::kCols;
  TilePlan plan = plan_tiles(outer.rows, outer.cols, run, sizeof(T), sizeof(Acc));
  share_blocks(plan, outer.items, sizeof(Acc), device);
  if constexpr (sizeof(T) < 16) {
    if (vector > 1) return run_outer_kernel<T, true>(outer, plan, device);
  }
  run_outer_kernel<T, false>(outer, plan, device);
}

// How the parts of an output's entries are shared out in the second stage.
FinishPlan plan_finish(bool wanted, int64_t entries, int64_t parts) {
  FinishPlan plan{0, 0};
  while ((1 << plan.slice_bits) < kTileThreads && (kSliceParts << plan.slice_bits) < parts) {
    ++plan.slice_bits;
  }
  const int64_t per_block = kTileThreads >> plan.slice_bits;
  if (wanted) plan.blocks = static_cast<int32_t>(ceil_div(entries, per_block));
  return plan;
}

template <class T, bool kVector, Sums kSums>
void run_tiles_kernel(const Problem& problem, TilePlan plan, int64_t outer_vector,
                      const Device& device, Workspace& workspace) {
  using Acc = Accumulator<T>;
  const Walk& walk = problem.walk;
  const bool products = kSums != Sums::kValue && walk.wants_products();
  if (!plan.single()) {
    const auto take = [&](bool wanted, int64_t count) {
      const size_t bytes = static_cast<size_t>(walk.items * count) * sizeof(Acc);
      return wanted ? workspace.take(bytes) : nullptr;
    };
    plan.p = take(products, plan.col_tiles * walk.rows);
    plan.q = take(walk.dx.data != nullptr, plan.row_tiles * walk.cols);
    plan.alpha = take(walk.alpha.data != nullptr, plan.tiles());
  }
  Outer outer = problem.outer;
  if (!plan.single()) outer.da = nullptr;
  launch_items("form_tiles", form_tiles<T, kVector, kSums>, walk.items, plan.members, plan.tiles(),
               plan.group() * plan.members, sizeof(TileShared<T>), device, walk, plan, outer,
               static_cast<int>(outer_vector));
  if (plan.single()) return;
  const FinishPlan dy = plan_finish(walk.dy.data != nullptr, walk.rows, plan.col_tiles);
  const int64_t parts = plan.row_tiles + (walk.quadratic ? plan.col_tiles : 0);
  const FinishPlan dx = plan_finish(walk.dx.data != nullptr, walk.cols, parts);
  const FinishPlan alpha = plan_finish(walk.alpha.data != nullptr, 1, plan.tiles());
  launch_items("form_finish", form_finish<T>, walk.items, 1, dy.blocks + dx.blocks + alpha.blocks,
               kTileThreads, kTileThreads * sizeof(Acc), device, walk, plan, dy, dx, alpha);
}

template <class T, bool kVector>
void run_tiles(const Problem& problem, const TilePlan& plan, int64_t outer_vector,
               const Device& device, Workspace& workspace) {
  if (problem.walk.triangle != Triangle::kNone) {
    run_tiles_kernel<T, kVector, Sums::kTriangle>(problem, plan, outer_vector, device, workspace);
  } else if (problem.walk.wants_products()) {
    run_tiles_kernel<T, kVector, Sums::kProducts>(problem, plan, outer_vector, device, workspace);
  } else {
    run_tiles_kernel<T, kVector, Sums::kValue>(problem, plan, outer_vector, device, workspace);
  }
}

template <class T>
void run(const Form& op, const Device& device, Workspace& workspace) {
  using Acc = Accumulator<T>;
  const Problem problem = make_problem(op, device, workspace);
  const Walk& walk = problem.walk;
  const Outer& outer = problem.outer;
  if (std::max(walk.rows, walk.cols) <= kSmallSize) return run_small<T>(problem, device);

  const int64_t outer_vector =
      outer.da == nullptr
          ? 1
          : vector_of(outer.da, outer.cols, 1, outer.batch_da, outer.rows, outer.cols, sizeof(T));
  bool outer_left = outer.da != nullptr;
  if (walk.reads_matrix()) {
    const int64_t vector =
        vector_of(walk.a, walk.row, walk.col, walk.batch_a, walk.rows, walk.cols, sizeof(T));
    const int64_t run = vector > 1 ? vector : Piece<T, false>::kCols;
    TilePlan plan = plan_tiles(walk.rows, walk.cols, run, sizeof(T), sizeof(Acc));
    share_blocks(plan, walk.items, sizeof(Acc), device);
    outer_left = outer_left && !plan.single();
    if (vector > 1) {
      if constexpr (sizeof(T) < 16) {
        run_tiles<T, true>(problem, plan, outer_vector, device, workspace);
      }
    } else {
      run_tiles<T, false>(problem, plan, outer_vector, device, workspace);
    }
  }
  if (outer_left) run_outer<T>(outer, outer_vector, device);
}

}  // namespace
}  // namespace forms

void form(const Form& op) {
  // An empty output has no memory, and so looks like one that is not wanted.
  const bool none = op.alpha == nullptr && op.dy == nullptr && op.da == nullptr && op.dx == nullptr;
  if (none || op.batch.numel() == 0) return;
  const Device device(op.device);
  Workspace workspace(device);
  with_dtype(op.dtype, [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    if constexpr (!std::is_integral_v<T>) forms::run<T>(op, device, workspace);
  });
}

}  // namespace matcalc::cuda
