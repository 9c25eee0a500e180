// Which products go over the tensor cores, with which numbers, tiles and loaders.
//
//   bf16, f16   both operands stored so, no S, no fold: their products are exact in float32.
//   TF32        float32 where torch's own switch allows it. And what is left of the 16-bit ops: a
//               float32 intermediate beside a 16-bit operand, A times S, folds. A 16-bit number is
//               exact in TF32, which has f16's 11 bits of precision (bf16: 8) and float32's range;
//               the intermediates, products A S and sums of a fold are rounded once to these 11
//               bits, which is as fine as, or finer than, the rounding of the result.
//   float64     on the GPUs whose tensor cores are faster at it than the ordinary units.
//
// Complex numbers and integers are for others.
#include "mma.cuh"

#include <algorithm>

#include "storage.cuh"

namespace matcalc::cuda {
namespace {

// One operand, in the words of the loaders.
struct View {
  const void* data;
  Dtype dtype;
  const Offsets &batch, &width, &depth;
};

bool is_low(Dtype dtype) { return dtype == Dtype::kBFloat16 || dtype == Dtype::kFloat16; }

// The numbers that the product is computed with; float32 stands for TF32.
bool choose_numbers(const Gemm& gemm, const Limits& limits, Dtype& numbers) {
  if (!limits.at_least(8, 0) || gemm.a == nullptr) return false;
  numbers = gemm.dtype;
  if (gemm.dtype == Dtype::kFloat64) {
    return limits.minor == 0 && (limits.major == 8 || limits.major == 9 || limits.major == 10);
  }
  if (gemm.dtype == Dtype::kFloat32) return tf32_allowed();
  if (!is_low(gemm.dtype)) return false;
  const bool as_stored = gemm.dtype_a == gemm.dtype && gemm.dtype_b == gemm.dtype;
  if (!as_stored || gemm.s != nullptr || gemm.fold != Fold::kNone) numbers = Dtype::kFloat32;
  return true;
}

// Whether the smallest tiles are full enough. The tensor cores do 8 times (16-bit numbers), 4 times
// (TF32) or twice (float64) what the ordinary units do, at the least; where less than that part of
// a tile is inside the product, tiles of the ordinary units that fit it are faster. Products of
// fewer than 32^3 are over before it matters.
bool worth_tiles(const Gemm& gemm, Dtype numbers) {
  constexpr double kLeast = 32.0 * 32 * 32;
  constexpr int64_t kTile = 64;
  const int64_t gain = is_low(numbers) ? 8 : numbers == Dtype::kFloat32 ? 4 : 2;
  const int64_t depth = kDepthBytes / dtype_size(numbers);
  const auto full =
      static_cast<double>(gemm.m) * static_cast<double>(gemm.n) * static_cast<double>(gemm.k);
  const auto padded = static_cast<double>(round_up(gemm.m, kTile)) *
                      static_cast<double>(round_up(gemm.n, kTile)) *
                      static_cast<double>(round_up(gemm.k, depth));
  return full >= kLeast && full * static_cast<double>(gain) >= padded;
}

// ---------------------------------------------------------------------------------------------
// Layouts

// Whether every step, but the one of 1 along the contiguous direction, is a multiple of `numbers`.
bool steps_divide(const Offsets& offsets, int64_t numbers, bool contiguous = false) {
  if (offsets.table != nullptr) return false;
  for (int d = 0; d < offsets.count - (contiguous ? 1 : 0); ++d) {
    if (offsets.stride[d] % numbers != 0) return false;
  }
  return true;
}

// What PlainLoader takes.
bool is_plain(const View& view, Dtype numbers, Major& major) {
  const int64_t size = dtype_size(numbers), per_chunk = kChunkBytes / size;
  const int64_t width = view.width.step(), depth = view.depth.step();
  if (view.dtype != numbers || width == kNoStep || depth == kNoStep) return false;
  if (width != 1 && depth != 1) return false;
  major = depth == 1 ? Major::kDepth : Major::kWidth;
  const int64_t step = depth == 1 ? width : depth;
  return step % per_chunk == 0 && is_aligned(view.data, kChunkBytes) &&
         steps_divide(view.batch, per_chunk);
}

// The step between the last dimension's positions, kNoStep where it is not known.
int64_t last_step(const Offsets& offsets) {
  if (offsets.table != nullptr) return kNoStep;
  return offsets.count == 0 ? 0 : offsets.stride[offsets.count - 1];
}

// Along which direction GeneralLoader walks: that of the smaller steps.
Major general_major(const View& view) {
  const int64_t width = last_step(view.width), depth = last_step(view.depth);
  return width > 0 && (depth <= 0 || width < depth) ? Major::kWidth : Major::kDepth;
}

// Whether the positions fall into runs of `numbers` with this step.
bool in_runs(const Offsets& offsets, int64_t step, int64_t numbers) {
  return offsets.table == nullptr && offsets.count > 0 && last_step(offsets) == step &&
         offsets.size[offsets.count - 1] % numbers == 0;
}

// Whether GeneralLoader can load chunks: numbers side by side and aligned, one of S for all of
// them.
bool in_chunks(const View& view, Major major, const Offsets* scale, Dtype numbers) {
  const int64_t per_chunk = kChunkBytes / dtype_size(numbers);
  const Offsets& along = major == Major::kDepth ? view.depth : view.width;
  const Offsets& across = major == Major::kDepth ? view.width : view.depth;
  return in_runs(along, 1, per_chunk) && steps_divide(along, per_chunk, true) &&
         steps_divide(across, per_chunk) && steps_divide(view.batch, per_chunk) &&
         is_aligned(view.data, per_chunk * dtype_size(view.dtype)) &&
         (scale == nullptr || in_runs(*scale, 0, per_chunk));
}

// Whether C can be stored in pieces of as many numbers as 16 bytes of sums.
bool stores_chunks(const Gemm& gemm) {
  const int64_t numbers = gemm.dtype == Dtype::kFloat64 ? 2 : 4;
  return gemm.n_c.step() == 1 && steps_divide(gemm.m_c, numbers) &&
         steps_divide(gemm.batch_c, numbers) &&
         is_aligned(gemm.c, numbers * dtype_size(gemm.dtype_c));
}

// ---------------------------------------------------------------------------------------------
// Tiles

struct Plan {
  MmaSize size;
  int64_t splits;
  int64_t split_steps;  // of a tile's depth in one split
};

// The plan with the least time, by a model in tenths of the time that a multiprocessor takes for 64
// bytes of depth of a large tile (about 500 clocks):
//   4 for a small tile, a quarter of the work at some 60 % of the speed (shared memory is its
//   limit), 18 for a wide one, which spares L2,
//   30 for a block to fill its ring and to store its sums, 45 for a wide one,
//   80 for the launch that adds splits (3 us), and the partial sums' way to L2 and back, at 20
//   bytes per clock and multiprocessor.
// Multiprocessors take blocks one after the other; the last round is as long as any.
Plan choose_plan(const Gemm& gemm, Dtype numbers, MmaSize largest, int64_t multiprocessors) {
  constexpr int64_t kStep[] = {4, 10, 18}, kBlock[] = {30, 30, 45}, kSplitLaunch = 80;
  constexpr int64_t kLeastSteps = 8;  // of a split: below, filling the ring is most of it
  constexpr double kSplitBytes = 20 * 500 / 10;
  const int64_t depth = kDepthBytes / dtype_size(numbers);
  const int64_t steps = std::max<int64_t>(1, ceil_div(gemm.k, depth));
  const double sums_bytes = 2.0 * (numbers == Dtype::kFloat64 ? 8 : 4) *
                            static_cast<double>(gemm.items) * static_cast<double>(gemm.m) *
                            static_cast<double>(gemm.n);
  Plan best{};
  double best_cost = -1;
  for (const MmaSize size : {MmaSize::kSmall, MmaSize::kLarge, MmaSize::kWide}) {
    if (size > largest) break;
    const int64_t rows = mma_rows(size), cols = mma_cols(size);
    const int64_t step_cost = kStep[static_cast<int>(size)];
    const int64_t block_cost = kBlock[static_cast<int>(size)];
    const double tiles = static_cast<double>(ceil_div(gemm.m, rows)) *
                         static_cast<double>(ceil_div(gemm.n, cols)) *
                         static_cast<double>(gemm.items);
    const auto units = static_cast<double>(multiprocessors);
    const auto consider = [&](int64_t splits) {
      const int64_t split_steps = ceil_div(steps, splits);
      splits = ceil_div(steps, split_steps);  // none of them empty
      const double rounds = std::ceil(tiles * static_cast<double>(splits) / units);
      double cost = rounds * static_cast<double>(split_steps * step_cost + block_cost);
      if (splits > 1) {
        cost += kSplitLaunch + static_cast<double>(splits) * sums_bytes / (units * kSplitBytes);
      }
      if (best_cost < 0 || cost < best_cost) {
        best_cost = cost;
        best = {size, splits, split_steps};
      }
    };
    consider(1);
    if (tiles >= units) continue;
    for (const double rounds : {1, 2}) {
      int64_t splits = std::min(static_cast<int64_t>(rounds * units / tiles), steps / kLeastSteps);
      for (; splits > 1; splits -= (splits + 3) / 4) consider(splits);
    }
  }
  return best;
}

Offsets uniform(int64_t numel, int64_t step) {
  Offsets offsets{};
  offsets.numel = numel;
  offsets.count = 1;
  offsets.size[0] = numel;
  offsets.stride[0] = step;
  return offsets;
}

// The product whose C are the partial sums [split, item, i, j].
Gemm partial_gemm(const Gemm& gemm, void* sums) {
  Gemm partial = gemm;
  partial.c = sums;
  partial.dtype_c = gemm.dtype == Dtype::kFloat64 ? Dtype::kFloat64 : Dtype::kFloat32;
  partial.bias = nullptr;
  partial.scale = 1;
  partial.batch_c = uniform(gemm.items, gemm.m * gemm.n);
  partial.m_c = uniform(gemm.m, gemm.n);
  partial.n_c = uniform(gemm.n, 1);
  return partial;
}

void launch_numbers(Dtype numbers, const MmaProblem& problem, const MmaVariant& variant,
                    const Device& device) {
  if (numbers == Dtype::kBFloat16) {
    launch_mma<Bf16>(problem, variant, device);
  } else if (numbers == Dtype::kFloat16) {
    launch_mma<F16>(problem, variant, device);
  } else if (numbers == Dtype::kFloat32) {
    launch_mma<float>(problem, variant, device);
  } else {
    launch_mma<double>(problem, variant, device);
  }
}

}  // namespace

bool run_mma(const Gemm& gemm, const Device& device, Workspace& workspace) {
  Dtype numbers;
  if (!choose_numbers(gemm, device.limits(), numbers) || !worth_tiles(gemm, numbers)) return false;

  const View a{gemm.a, gemm.dtype_a, gemm.batch_a, gemm.m_a, gemm.k_a};
  const View b{gemm.b, gemm.dtype_b, gemm.batch_b, gemm.n_b, gemm.k_b};
  MmaVariant variant{};
  variant.plain = gemm.s == nullptr && gemm.fold == Fold::kNone &&
                  is_plain(a, numbers, variant.major_a) && is_plain(b, numbers, variant.major_b);
  MmaProblem problem{};
  if (!variant.plain) {
    const bool folded = gemm.fold != Fold::kNone;
    variant.major_a = general_major(a);
    variant.major_b = folded ? Major::kDepth : general_major(b);
    const Offsets* scale = variant.major_a == Major::kDepth ? &gemm.k_s : &gemm.m_s;
    problem.chunks_a = in_chunks(a, variant.major_a, gemm.s == nullptr ? nullptr : scale, numbers);
    problem.chunks_b = !folded && in_chunks(b, variant.major_b, nullptr, numbers);
  }
  const Plan plan = choose_plan(gemm, numbers, largest_size(numbers, variant.plain),
                                device.limits().multiprocessors);
  variant.size = plan.size;
  const int64_t rows = mma_rows(plan.size), cols = mma_cols(plan.size);
  const int64_t tiles_m = ceil_div(gemm.m, rows), tiles_n = ceil_div(gemm.n, cols);
  // Further than this a grid does not go, nor a block's count of steps. No memory holds such an
  // operand, unless it repeats itself.
  if (static_cast<double>(tiles_m) * static_cast<double>(tiles_n) *
              static_cast<double>(gemm.items * plan.splits) >
          static_cast<double>(kMaxGrid) ||
      plan.split_steps > INT32_MAX) {
    return false;
  }
  problem.gemm = gemm;
  problem.splits = static_cast<int32_t>(plan.splits);
  problem.split_depth = plan.split_steps * (kDepthBytes / dtype_size(numbers));
  problem.tiles_m = static_cast<uint32_t>(tiles_m);
  problem.tiles_n = static_cast<uint32_t>(tiles_n);
  if (plan.splits == 1) {
    problem.chunks_c = stores_chunks(problem.gemm);
    launch_numbers(numbers, problem, variant, device);
    return true;
  }
  problem.split_c = gemm.items * gemm.m * gemm.n;
  const size_t size = numbers == Dtype::kFloat64 ? sizeof(double) : sizeof(float);
  void* sums = workspace.take(static_cast<size_t>(plan.splits * problem.split_c) * size);
  problem.gemm = partial_gemm(gemm, sums);
  problem.chunks_c =
      stores_chunks(problem.gemm) && problem.split_c % (numbers == Dtype::kFloat64 ? 2 : 4) == 0;
  launch_numbers(numbers, problem, variant, device);
  add_splits(gemm, device, sums, plan.splits);
  return true;
}

}  // namespace matcalc::cuda
