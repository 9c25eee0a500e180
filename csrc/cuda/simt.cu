// Which tile, and into how many parts the depth is cut: by an estimate of the time of each choice,
// from the shape and the number of multiprocessors alone, so that sums are always formed alike.
#include "simt.cuh"

#include <cmath>

#include "launch.cuh"

namespace matcalc::cuda {
namespace {

// float32, 128 x 128: 64 sums of a thread, 128 registers and two blocks on a multiprocessor.
using Large = Shape<float, 4, 2, 8, 8, 1, 2>;
// float32 by the GeneralLoader, whose registers do not fit beside 64 sums into 128: 64 x 128 by 4
// warps, 168 registers and three blocks on a multiprocessor.
using Wide = Shape<float, 2, 2, 8, 8, 1, 3>;
// 64 x 64 by 4 warps of 32 x 32, 32 sums of a thread. Of complex128 a sum takes 4 registers: 16
// sums, 8 warps of 16 x 32.
template <class Acc>  // a 64-bit whole number is multiplied in pieces, which takes registers
constexpr int kMiddleBlocks = sizeof(Acc) == 4                ? 4
                              : std::is_same_v<Acc, uint64_t> ? 2
                                                              : 3;
template <class Acc>
using Middle = std::conditional_t<sizeof(Acc) == 16, Shape<Acc, 4, 2, 4, 4, 1, 1>,
                                  Shape<Acc, 2, 2, 8, 4, 1, kMiddleBlocks<Acc>>>;
// The same warp tiles, each on its own, for small matrices.
template <class Acc>
using Small = std::conditional_t<sizeof(Acc) == 16, Shape<Acc, 1, 1, 4, 4, 4, 1>,
                                 Shape<Acc, 1, 1, 8, 4, 4, sizeof(Acc) == 4 ? 3 : 2>>;

// The parts of a sum are at least so long: shorter ones cost more to write and add than to form.
constexpr int64_t kMinSplitDepth = 128;
// add_splits walks along all parts of an element one after the other.
constexpr int64_t kMaxSplits = 512;
constexpr int64_t kMaxPartialBytes = int64_t{64} << 20;
// Blocks per multiprocessor, beyond which a block takes several tiles.
constexpr int64_t kMaxBlocks = 64;

struct Choice {
  SimtPlan plan;
  double cost;  // multiply-adds of one multiprocessor in the same time
};

// `efficiency`: the share of the peak that the kernel reaches with the multiprocessors full. The
// estimate counts in multiply-adds of a multiprocessor, 128 in a clock.
template <class S>
Choice choose(const Gemm& gemm, const Device& device, double efficiency) {
  using Acc = typename S::Acc;
  // Warps from which on the latencies of shared memory and arithmetic are hidden.
  constexpr double kBusyWarps = 12;
  // A second kernel takes about 2 us, 3500 clocks; L2 moves about 11 bytes in a clock for each
  // multiprocessor.
  constexpr double kLaunch = 3500 * 128, kPerByte = 128.0 / 11;
  const int64_t processors = std::max(1, device.limits().multiprocessors);
  const double elements =
      static_cast<double>(gemm.items) * static_cast<double>(gemm.m) * static_cast<double>(gemm.n);

  Choice choice{};
  SimtPlan& plan = choice.plan;
  plan.tiles_m = ceil_div(gemm.m, S::kM);
  plan.tiles_n = ceil_div(gemm.n, S::kN);
  const int64_t tiles = plan.tiles_m * plan.tiles_n * gemm.items;
  const auto cost_of = [&](int64_t splits, int64_t depth) {
    const double blocks = std::ceil(static_cast<double>(tiles) * static_cast<double>(splits) /
                                    static_cast<double>(S::kGroups));
    const double rounds = std::ceil(blocks / static_cast<double>(processors));
    const double resident = std::min(rounds, static_cast<double>(S::kMinBlocks));
    const double busy = std::min(1.0, resident * (S::kThreads / 32) / kBusyWarps);
    const double block_work = static_cast<double>(S::kGroups) * S::kM * S::kN *
                              static_cast<double>(std::max<int64_t>(depth, S::kDepth));
    double cost = rounds * block_work / (efficiency * busy);
    if (splits > 1) {
      const double bytes = elements * sizeof(Acc) * (2 * static_cast<double>(splits) + 1);
      cost += kLaunch + bytes * kPerByte / static_cast<double>(processors);
    }
    return cost;
  };
  const auto take = [&](int64_t wanted) {
    const int64_t depth = std::max<int64_t>(ceil_div(ceil_div(gemm.k, wanted), S::kDepth), 1);
    plan.depth = depth * S::kDepth;
    plan.splits = std::max<int64_t>(ceil_div(gemm.k, plan.depth), 1);
    choice.cost = cost_of(plan.splits, plan.depth);
  };
  take(std::max<int64_t>(ceil_div(gemm.k, kMaxDepth), 1));
  const int64_t slots = processors * S::kMinBlocks * S::kGroups;
  const int64_t most =
      static_cast<int64_t>(static_cast<double>(kMaxPartialBytes) / (elements * sizeof(Acc)));
  const int64_t wanted = std::min({slots / tiles, gemm.k / kMinSplitDepth, kMaxSplits, most});
  if (wanted > plan.splits) {
    const Choice whole = choice;
    take(wanted);
    if (whole.cost <= choice.cost) choice = whole;
  }
  plan.tiles = tiles * plan.splits;
  plan.size_a = static_cast<int32_t>(dtype_size(gemm.dtype_a));
  plan.size_s = static_cast<int32_t>(dtype_size(gemm.dtype));
  plan.size_b = static_cast<int32_t>(dtype_size(gemm.dtype_b));
  plan.packs_c = plan.splits == 1 ? stores_packs(gemm, S::kPack) : gemm.n % S::kPack == 0;
  return choice;
}

// Whether neighbouring elements of an operand lie along the depth rather than along its lines.
bool lies_along_depth(const Offsets& lines, const Offsets& depth) {
  const auto innermost = [](const Offsets& offsets) {
    const bool known = offsets.table == nullptr && offsets.count > 0;
    const int64_t step = known ? offsets.stride[offsets.count - 1] : 0;
    return step == 0 ? INT64_MAX : step;
  };
  return innermost(depth) < innermost(lines);
}

// How an operand [lines, depth] can be read 16 bytes at a time, if it can.
enum class Layout { kNone, kAlongDepth, kAlongLines };

Layout plain_layout(const void* data, const Offsets& batch, const Offsets& lines,
                    const Offsets& depth, int64_t line_count, int64_t depth_count) {
  if (!is_aligned(data, 16) || !steps_by(batch, 4)) return Layout::kNone;
  const int64_t line_step = lines.step(), depth_step = depth.step();
  if (line_step == kNoStep || depth_step == kNoStep) return Layout::kNone;
  if (depth_step == 1 && line_step % 4 == 0 && depth_count % 4 == 0) return Layout::kAlongDepth;
  if (line_step == 1 && depth_step % 4 == 0 && line_count % 4 == 0) return Layout::kAlongLines;
  return Layout::kNone;
}

template <class S, class Loader>
void start(const char* name, const Gemm& gemm, const Device& device, Workspace& workspace,
           SimtPlan plan) {
  using Acc = typename S::Acc;
  if (plan.splits > 1) {
    plan.partial = workspace.take(static_cast<size_t>(plan.splits * gemm.items * gemm.m * gemm.n) *
                                  sizeof(Acc));
  }
  const int64_t most = std::min(kMaxGrid, kMaxBlocks * device.limits().multiprocessors);
  const int64_t blocks = std::min(ceil_div(plan.tiles, S::kGroups), most);
  launch(name, simt_kernel<S, Loader>, blocks, S::kThreads,
         S::kGroups * sizeof(SimtShared<S, Loader>), device, gemm, plan);
  if (plan.splits > 1) add_splits(gemm, device, plan.partial, plan.splits);
}

template <class S>
void start_plain(const char* name, Layout a, Layout b, const Gemm& gemm, const Device& device,
                 Workspace& workspace, const SimtPlan& plan) {
  if (a == Layout::kAlongDepth && b == Layout::kAlongDepth) {
    start<S, PlainLoader<S, true, true>>(name, gemm, device, workspace, plan);
  } else if (a == Layout::kAlongDepth) {
    start<S, PlainLoader<S, true, false>>(name, gemm, device, workspace, plan);
  } else if (b == Layout::kAlongDepth) {
    start<S, PlainLoader<S, false, true>>(name, gemm, device, workspace, plan);
  } else {
    start<S, PlainLoader<S, false, false>>(name, gemm, device, workspace, plan);
  }
}

template <class Acc>
void run_general(const Gemm& gemm, const Device& device, Workspace& workspace) {
  using M = Middle<Acc>;
  using W = Small<Acc>;
  Choice middle = choose<M>(gemm, device, 0.65);
  Choice small = choose<W>(gemm, device, 0.5);
  for (SimtPlan* plan : {&middle.plan, &small.plan}) {
    plan->along_depth_a = gemm.a != nullptr && lies_along_depth(gemm.m_a, gemm.k_a);
    plan->along_depth_b = lies_along_depth(gemm.n_b, gemm.k_b);
  }
  if constexpr (std::is_same_v<Acc, float>) {
    Choice wide = choose<Wide>(gemm, device, 0.8);
    if (wide.cost < std::min(middle.cost, small.cost)) {
      wide.plan.along_depth_a = middle.plan.along_depth_a;
      wide.plan.along_depth_b = middle.plan.along_depth_b;
      start<Wide, GeneralLoader<Wide>>("simt_wide", gemm, device, workspace, wide.plan);
      return;
    }
  }
  if (middle.cost <= small.cost) {
    start<M, GeneralLoader<M>>("simt_middle", gemm, device, workspace, middle.plan);
  } else {
    start<W, GeneralLoader<W>>("simt_small", gemm, device, workspace, small.plan);
  }
}

// The product by the PlainLoader, where it can take it and no tile of the general one is better.
bool run_plain(const Gemm& gemm, const Device& device, Workspace& workspace) {
  using M = Middle<float>;
  using W = Small<float>;
  for (const Dtype dtype : {gemm.dtype, gemm.dtype_a, gemm.dtype_b, gemm.dtype_c}) {
    if (dtype != Dtype::kFloat32) return false;
  }
  if (gemm.k == 0 || gemm.a == nullptr || gemm.s != nullptr || gemm.fold != Fold::kNone) {
    return false;
  }
  const Layout a = plain_layout(gemm.a, gemm.batch_a, gemm.m_a, gemm.k_a, gemm.m, gemm.k);
  const Layout b = plain_layout(gemm.b, gemm.batch_b, gemm.n_b, gemm.k_b, gemm.n, gemm.k);
  if (a == Layout::kNone || b == Layout::kNone) return false;
  const Choice large = choose<Large>(gemm, device, 1.0);
  const Choice middle = choose<M>(gemm, device, 0.8);
  const Choice small = choose<W>(gemm, device, 0.5);
  if (small.cost < std::min(large.cost, middle.cost)) return false;
  if (large.cost < middle.cost) {
    start_plain<Large>("simt_plain_large", a, b, gemm, device, workspace, large.plan);
  } else {
    start_plain<M>("simt_plain_middle", a, b, gemm, device, workspace, middle.plan);
  }
  return true;
}

}  // namespace

void run_simt(const Gemm& gemm, const Device& device, Workspace& workspace) {
  if (run_plain(gemm, device, workspace)) return;
  with_dtype(gemm.dtype, [&](auto* type) {
    run_general<Accumulator<StorageOf<decltype(type)>>>(gemm, device, workspace);
  });
}

}  // namespace matcalc::cuda
