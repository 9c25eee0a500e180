// Which way a matrix times a vector is read, by how many threads, and into how many parts the sums
// are cut: from the shape, the strides and the number of multiprocessors alone, so that sums are
// always formed alike.
#include "gemv.cuh"

#include "launch.cuh"

namespace matcalc::cuda {
namespace {

// A multiprocessor of the fastest memory (25 bytes a clock, 700 ns away) needs about 20 KB on their
// way. 768 threads with four loads of 16 bytes have 48 KB, 384 with eight as many.
constexpr int64_t kBusyThreads = 768, kBusyThreadsOfFour = 384;
// From here on lines are read four at a time whatever their number, with up to three idle ones.
constexpr int64_t kManyLines = 16;
// A vector up to here stays in the L1 cache beside what streams through; a longer one would come
// from L2 once for every line, as much again as the matrix.
constexpr int64_t kVectorInL1 = 48 * 1024;
// The second stage adds the parts of a sum: few enough for one block.
constexpr int64_t kMaxSplits = 1024;
// Blocks of a sum of columns for a multiprocessor, which has two of them at a time.
constexpr int64_t kColumnBlocks = 8;

// The matrix and the vector of a product, if it has such.
bool make_gemv(const Gemm& gemm, Gemv& gemv) {
  const bool one_row = gemm.m == 1, one_column = gemm.n == 1;
  if (!one_row && !one_column) return false;
  // A plain sum reads B, also into several rows of C. Of a dot, what can be read 16 bytes at a time
  // is the matrix.
  bool matrix_is_a = gemm.a != nullptr && one_column;
  if (matrix_is_a && one_row && gemm.k_a.step() != 1 && gemm.k_b.step() == 1) matrix_is_a = false;
  gemv = {};
  gemv.dtype = gemm.dtype;
  gemv.dtype_matrix = matrix_is_a ? gemm.dtype_a : gemm.dtype_b;
  gemv.dtype_vector = matrix_is_a ? gemm.dtype_b : gemm.dtype_a;
  gemv.dtype_c = gemm.dtype_c;
  gemv.matrix = matrix_is_a ? gemm.a : gemm.b;
  gemv.vector = matrix_is_a ? gemm.b : gemm.a;
  if (gemv.vector == nullptr) gemv.dtype_vector = gemv.dtype_matrix;
  gemv.bias = gemm.bias;
  gemv.c = gemm.c;
  gemv.items = gemm.items;
  gemv.lines = one_column ? gemm.m : gemm.n;
  gemv.batch_matrix = matrix_is_a ? gemm.batch_a : gemm.batch_b;
  gemv.batch_vector = matrix_is_a ? gemm.batch_b : gemm.batch_a;
  gemv.batch_c = gemm.batch_c;
  // Where C has several rows of the same plain sum, A's strides along them are 0, as B's would be.
  gemv.line_matrix = one_column ? gemm.m_a : gemm.n_b;
  gemv.line_c = one_column ? gemm.m_c : gemm.n_c;
  const Offsets& k_matrix = matrix_is_a ? gemm.k_a : gemm.k_b;
  const Offsets& k_vector = matrix_is_a ? gemm.k_b : gemm.k_a;
  gemv.k_run = even_positions(gemm.k, {&k_matrix, &k_vector});
  if (gemv.k_run == 0) return false;
  gemv.k_runs = gemm.k / gemv.k_run;
  if (gemv.k_runs > 1 && gemv.k_run > kMaxStretch) return false;
  gemv.runs_matrix = stretches_of(k_matrix, gemv.k_run);
  gemv.runs_vector = stretches_of(k_vector, gemv.k_run);
  gemv.step_matrix = innermost_step(k_matrix);
  gemv.step_vector = innermost_step(k_vector);
  gemv.bias_step = gemm.bias_on_rows == one_column ? gemm.bias_stride : 0;
  // conj(A) x = conj(A conj(x)): only entries of the vector are conjugated on the way in.
  const bool conj_matrix = matrix_is_a ? gemm.conj_a : gemm.conj_b;
  gemv.conj_vector = (matrix_is_a ? gemm.conj_b : gemm.conj_a) != conj_matrix;
  gemv.conj_sum = conj_matrix;
  gemv.scale = gemm.scale;
  return true;
}

// Whether neighbouring elements of the matrix lie along its lines' index rather than along k.
bool lies_along_lines(const Gemv& gemv) {
  const auto or_far = [](int64_t step) { return step == 0 ? INT64_MAX : step; };
  return gemv.lines > 1 && gemv.line_matrix.table == nullptr &&
         or_far(innermost_step(gemv.line_matrix)) < or_far(gemv.step_matrix);
}

// The parts of sums that take `team` threads each and `least` of the positions at least, for so
// many threads in all.
int64_t splits_for(const Gemv& gemv, int64_t threads, int64_t units, int64_t team,
                   int64_t positions, int64_t least) {
  const int64_t most = gemv.k_runs > 1 ? gemv.k_runs : kMaxSplits;
  return std::max<int64_t>(
      1, std::min({ceil_div(threads, units * team), positions / least, most, kMaxSplits}));
}

template <class T>
GemvPlan plan_rows(const Gemv& gemv, int64_t processors) {
  constexpr int kPack = kFullPack<T>;
  GemvPlan plan{};
  plan.packs = gemv.step_matrix == 1 &&
               takes_runs(gemv.matrix, gemv.dtype_matrix, kPack,
                          {&gemv.line_matrix, &gemv.batch_matrix, &gemv.runs_matrix});
  plan.packs_vector =
      gemv.vector != nullptr && gemv.step_vector == 1 &&
      takes_runs(gemv.vector, gemv.dtype_vector, kPack, {&gemv.batch_vector, &gemv.runs_vector});
  const int64_t pack = plan.packs ? kPack : 1;
  const int64_t runs = ceil_div(gemv.k_run, pack);  // of a line's stretch
  const int64_t fours = gemv.items * ceil_div(gemv.lines, 4);
  const bool long_vector = gemv.vector != nullptr &&
                           gemv.k_runs * gemv.k_run * dtype_size(gemv.dtype_vector) > kVectorInL1;
  plan.team = lanes_for(ceil_div(runs, 2), 1, 32);
  plan.rows = 1;
  if ((gemv.lines >= kManyLines || gemv.lines % 4 == 0) &&
      (long_vector || fours * plan.team >= kBusyThreadsOfFour * processors)) {
    plan.rows = 4;
  }
  const int64_t busy = (plan.rows == 4 ? kBusyThreadsOfFour : kBusyThreads) * processors;
  plan.groups = ceil_div(gemv.lines, plan.rows);
  plan.splits = 1;
  const int64_t units = gemv.items * plan.groups;
  if (units * plan.team < busy) {
    // Few lines: a block for each, or for a part of it that takes each thread twice around its
    // loop.
    if (runs > 64) plan.team = kLevel2Threads;
    plan.splits = splits_for(gemv, busy, units, plan.team, gemv.k_runs * runs,
                             int64_t{plan.team} * (plan.rows == 4 ? 4 : 8));
  }
  plan.depth =
      gemv.k_runs > 1 ? ceil_div(gemv.k_runs, plan.splits) : ceil_div(runs, plan.splits) * pack;
  return plan;
}

template <class T>
GemvPlan plan_columns(const Gemv& gemv, int64_t processors) {
  constexpr int kPack = kFullPack<T>;
  GemvPlan plan{};
  plan.columns = true;
  plan.rows = 1;
  plan.packs =
      gemv.line_matrix.step() == 1 && gemv.lines % kPack == 0 && gemv.step_matrix % kPack == 0 &&
      takes_runs(gemv.matrix, gemv.dtype_matrix, kPack, {&gemv.batch_matrix, &gemv.runs_matrix});
  const int64_t runs = ceil_div(gemv.lines, plan.packs ? kPack : 1);
  // Narrower teams need no second stage, as long as a team still reads 128 bytes side by side.
  const auto fills = [&](int64_t across) {
    return gemv.items * ceil_div(runs, across) * 2 >= 3 * processors;  // blocks
  };
  plan.across = lanes_for(runs, 1, 32);
  int narrow = plan.across;
  while (narrow > 8 && !fills(narrow)) narrow /= 2;
  if (fills(narrow)) plan.across = narrow;
  plan.groups = ceil_div(runs, plan.across);
  const int64_t units = gemv.items * plan.groups;
  const int64_t warp_depth = 32 / plan.across;
  const bool warps =
      units * 32 >= kBusyThreads * processors || gemv.k_run <= kColumnUnroll * warp_depth;
  plan.team = warps ? 32 : kLevel2Threads;
  plan.splits = 1;
  if (units * plan.team * 2 < 3 * kLevel2Threads * processors) {
    // A part takes each thread twice around its loop.
    plan.splits = splits_for(gemv, kColumnBlocks * kLevel2Threads * processors, units, plan.team,
                             gemv.k_runs * gemv.k_run, plan.team / plan.across * kColumnUnroll * 2);
  }
  plan.depth = ceil_div(gemv.k_runs > 1 ? gemv.k_runs : gemv.k_run, plan.splits);
  return plan;
}

template <class T, int kPack>
void launch_columns(const char* name, const Gemv& gemv, const GemvPlan& plan,
                    const Device& device) {
  const int64_t teams = kLevel2Threads / plan.team;
  const size_t shared = teams > 1 ? 0 : kLevel2Warps * 32 * kPack * sizeof(Accumulator<T>);
  launch(name, gemv_columns_kernel<T, kPack>, ceil_div(plan.units, teams), kLevel2Threads, shared,
         device, gemv, plan);
}

template <class T, class X, int kPack, int kRows>
void launch_rows(const char* name, const Gemv& gemv, const GemvPlan& plan, const Device& device) {
  const int64_t teams = kLevel2Threads / plan.team;
  const size_t shared = teams > 1 ? 0 : kLevel2Warps * kRows * sizeof(Accumulator<T>);
  launch(name, gemv_rows_kernel<T, X, kPack, kRows>, ceil_div(plan.units, teams), kLevel2Threads,
         shared, device, gemv, plan);
}

// Calls body(X*{}) with the stored type of the vector beside a matrix of Ts.
template <class T, class F>
void with_vector_type(Dtype dtype, F&& body) {
  if constexpr (std::is_same_v<T, float>) {
    if (dtype == Dtype::kBFloat16) return body(static_cast<Bf16*>(nullptr));
    if (dtype == Dtype::kFloat16) return body(static_cast<F16*>(nullptr));
  } else if constexpr (sizeof(T) == 2) {
    if (dtype == Dtype::kFloat32) return body(static_cast<float*>(nullptr));
  }
  body(static_cast<T*>(nullptr));
}

template <class T>
void launch_kernel(const Gemv& gemv, const GemvPlan& plan, const Device& device) {
  constexpr int kPack = kFullPack<T>;
  if (plan.columns) {
    if (plan.packs) {
      launch_columns<T, kPack>("gemv_columns", gemv, plan, device);
    } else {
      launch_columns<T, 1>("gemv_columns_by_element", gemv, plan, device);
    }
    return;
  }
  with_vector_type<T>(gemv.dtype_vector, [&](auto* type) {
    using X = StorageOf<decltype(type)>;
    if (plan.packs && plan.rows == 4) {
      launch_rows<T, X, kPack, 4>("gemv_four_rows", gemv, plan, device);
    } else if (plan.packs) {
      launch_rows<T, X, kPack, 1>("gemv_rows", gemv, plan, device);
    } else if (plan.rows == 4) {
      launch_rows<T, X, 1, 4>("gemv_four_rows_by_element", gemv, plan, device);
    } else {
      launch_rows<T, X, 1, 1>("gemv_rows_by_element", gemv, plan, device);
    }
  });
}

Offsets even_offsets(int64_t numel, int64_t stride) {
  Offsets offsets{};
  offsets.numel = numel;
  offsets.fits32 = numel <= INT32_MAX;
  offsets.count = numel == 1 ? 0 : 1;
  offsets.size[0] = numel;
  offsets.stride[0] = stride;
  return offsets;
}

template <class T>
void run_as(const Gemv& gemv, const Device& device, Workspace& workspace, bool may_split) {
  using Acc = Accumulator<T>;
  const int64_t processors = std::max(1, device.limits().multiprocessors);
  GemvPlan plan =
      lies_along_lines(gemv) ? plan_columns<T>(gemv, processors) : plan_rows<T>(gemv, processors);
  const int lines_of_thread = plan.columns ? kFullPack<T> : plan.rows;
  const int64_t whole = gemv.k_runs > 1 ? gemv.k_runs : gemv.k_run;
  if (!may_split) plan.depth = whole;
  if (gemv.k_runs == 1) plan.depth = std::min(plan.depth, kMaxStretch);
  plan.splits = ceil_div(whole, plan.depth);
  plan.units = plan.groups * gemv.items * plan.splits;
  Gemv first = gemv;
  if (plan.splits > 1) {
    // Bare sums, [items, splits, lines].
    first.c =
        workspace.take(static_cast<size_t>(gemv.items * plan.splits * gemv.lines) * sizeof(Acc));
    first.dtype_c = accumulator_dtype<Acc>();
    first.batch_c = even_offsets(gemv.items, plan.splits * gemv.lines);
    first.line_c = even_offsets(gemv.lines, 1);
    first.bias = nullptr;
    first.conj_sum = false;
    first.scale = 1;
    plan.split_c = gemv.lines;
  }
  plan.packs_c = first.line_c.step() == 1 && gemv.lines % lines_of_thread == 0 &&
                 plan.split_c % lines_of_thread == 0 &&
                 takes_runs(first.c, first.dtype_c, lines_of_thread, {&first.batch_c});
  launch_kernel<T>(first, plan, device);
  if (plan.splits == 1) return;
  Gemv second = gemv;
  second.matrix = first.c;
  second.dtype_matrix = first.dtype_c;
  second.vector = nullptr;
  second.dtype_vector = first.dtype_c;
  second.batch_matrix = first.batch_c;
  second.line_matrix = first.line_c;
  second.k_runs = 1;
  second.k_run = plan.splits;
  second.runs_matrix = second.runs_vector = even_offsets(1, 0);
  second.step_matrix = gemv.lines;
  run_as<Acc>(second, device, workspace, false);
}

}  // namespace

bool run_gemv(const Gemm& gemm, const Device& device, Workspace& workspace) {
  Gemv gemv;
  if (!make_gemv(gemm, gemv)) return false;
  with_dtype(gemv.dtype_matrix, [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    if constexpr (!std::is_integral_v<T>) run_as<T>(gemv, device, workspace, true);
  });
  return true;
}

}  // namespace matcalc::cuda
