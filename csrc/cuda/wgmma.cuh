// The gemm of Hopper: bf16 and f16 by wgmma, which multiplies straight from shared memory, sums in
// float32.
//
// A block computes one tile of C after another. One thread does nothing but start the copies of the
// tiles of A and B, through a ring of stages in shared memory; two warpgroups multiply them, each
// half of the tile's rows, and write their sums to C while the copies for the next tile are already
// under way.
#pragma once

#include "gemm.cuh"
#include "launch.cuh"
#include "ptx_hopper.cuh"
#include "wgmma_layout.h"

namespace matcalc::cuda {

// The batch: up to three dimensions, which are coordinates in the arrays' maps, the outermost last.
// Along a dimension that repeats an array its only coordinate is 0.
constexpr int kBatchDims = 3;
struct WgmmaBatch {
  uint32_t size[2];            // of the innermost dimension and the next
  uint32_t steps[kBatchDims];  // 1, or 0 where the array is repeated
};

// Where the sums go: to C, or to one split's partial sums.
struct WgmmaOutput {
  hopper::TensorMap map;  // read only where `copies`
  bool copies;            // the copy engine can write it
  bool is_float;          // float32, else of the operands' type
  WgmmaBatch batch;
  void* data;
  Offsets positions;
  int64_t row_step, col_step;
};

struct WgmmaProblem {
  hopper::TensorMap a, b;  // in a kernel's parameters, where the copy engine reads them
  WgmmaOutput out;
  WgmmaBatch batch_a, batch_b;
  WgmmaSchedule schedule;
  uint32_t m, n;
  const void* bias;  // [m] or [n] of the operands' type, bias_stride apart, or nullptr
  int64_t bias_stride;
  bool bias_on_rows;
  float scale;
};

// A tile is 128 x 256, or 128 x 128 for products of which the large tiles would leave
// multiprocessors idle. One instruction multiplies 64 x 256 (64 x 128) per warpgroup: per 16 of
// depth it reads 10 (6) KiB of shared memory in the 128 (64) clocks that its multiplications take,
// below the 128 bytes that a clock can bring.
//
// Shared memory, of 227 KiB: stages of 48 (32) KiB, four (six) of them, are 192; the buffers from
// which C is written, two of 8 KiB for each warpgroup, are 32.
//
// Registers, of 65536: at its start each of the 384 threads has 168. The producer's warpgroup then
// keeps 40 of them and the others take 232, again 64512 in all: 128 (64) of
// those are sums.
template <int kN>
struct WgmmaShape {
  static constexpr int kTileM = 128, kTileN = kN;
  static constexpr int kStages = kN == 256 ? 4 : 6;
  static constexpr int kConsumers = kTileM / kWgmmaRows;  // warpgroups
  static constexpr int kThreads = (1 + kConsumers) * kWarpgroup;
  static constexpr int kSums = kWgmmaRows * kTileN / kWarpgroup;  // of a thread
  static constexpr int kProducerRegisters = 40, kConsumerRegisters = 232;
};

// 64 lines of C, swizzled.
constexpr int kOutputBytes = kWgmmaRows * kSwizzleLine;
struct alignas(kSwizzleBytes) WgmmaBuffer {
  unsigned char bytes[kOutputBytes];
};

template <class Shape>
struct alignas(kSwizzleBytes) WgmmaShared {
  unsigned char a[Shape::kStages][Shape::kTileM * kSwizzleLine];
  unsigned char b[Shape::kStages][Shape::kTileN * kSwizzleLine];
  WgmmaBuffer c[Shape::kConsumers][2];
  hopper::Barrier full[Shape::kStages];   // the stage's bytes have come
  hopper::Barrier empty[Shape::kStages];  // every warp's products of it are done
};

// Launches the kernel for numbers of type T (Bf16, F16) and tiles 128 x kN; compiled in
// wgmma_<type>.cu.
template <class T, int kN>
void launch_wgmma(const WgmmaProblem& problem, Major a, Major b, const Device& device);

extern template void launch_wgmma<Bf16, 128>(const WgmmaProblem&, Major, Major, const Device&);
extern template void launch_wgmma<Bf16, 256>(const WgmmaProblem&, Major, Major, const Device&);
extern template void launch_wgmma<F16, 128>(const WgmmaProblem&, Major, Major, const Device&);
extern template void launch_wgmma<F16, 256>(const WgmmaProblem&, Major, Major, const Device&);

namespace {

// The stage that is next in the ring, and whether the ring has been passed an odd number of times.
template <int kStages>
struct RingPosition {
  int stage = 0;
  uint32_t parity = 0;

  __device__ void advance() {
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct BatchCoordinates {
  int at[kBatchDims];
};
__device__ inline BatchCoordinates coordinates(const WgmmaBatch& batch, uint32_t position) {
  const uint32_t rest = position / batch.size[0], outer = rest / batch.size[1];
  return {static_cast<int>((position - rest * batch.size[0]) * batch.steps[0]),
          static_cast<int>((rest - outer * batch.size[1]) * batch.steps[1]),
          static_cast<int>(outer * batch.steps[2])};
}

// ---------------------------------------------------------------------------------------------
// The producer

// Loads the tile of an operand that begins at w, k.
template <class Tile>
__device__ inline void load_tile(unsigned char* tile, const hopper::TensorMap& map, uint32_t w,
                                 uint32_t k, const BatchCoordinates& batch,
                                 hopper::Barrier& barrier) {
  const int at_w = static_cast<int>(w), at_k = static_cast<int>(k);
  if constexpr (Tile::kAlongDepth) {
    hopper::load_box(tile, map, {at_k, at_w, batch.at[0], batch.at[1], batch.at[2]}, barrier);
  } else {
#pragma unroll
    for (int box = 0; box < Tile::kBoxes; ++box) {
      hopper::load_box(tile + box * Tile::kBoxBytes, map,
                       {at_w + box * kSlabWidth, at_k, batch.at[0], batch.at[1], batch.at[2]},
                       barrier);
    }
  }
}

template <class Shape, class TileA, class TileB>
__device__ inline void produce(const WgmmaProblem& problem, WgmmaShared<Shape>& shared) {
  RingPosition<Shape::kStages> ring;
  const uint32_t count = problem.schedule.count();
  for (uint32_t index = blockIdx.x; index < count; index += gridDim.x) {
    const WgmmaWork work = problem.schedule.at(index);
    const BatchCoordinates a = coordinates(problem.batch_a, work.item);
    const BatchCoordinates b = coordinates(problem.batch_b, work.item);
    const uint32_t m = work.m * Shape::kTileM, n = work.n * Shape::kTileN;
    for (uint32_t s = work.first; s < work.last; ++s) {
      const int stage = ring.stage;
      hopper::Barrier& full = shared.full[stage];
      hopper::wait(shared.empty[stage], ring.parity ^ 1);  // in the first pass all are
      hopper::arrive_and_expect(full, TileA::kBytes + TileB::kBytes);
      load_tile<TileA>(shared.a[stage], problem.a, m, s * kStageDepth, a, full);
      load_tile<TileB>(shared.b[stage], problem.b, n, s * kStageDepth, b, full);
      ring.advance();
    }
  }
}

// ---------------------------------------------------------------------------------------------
// From the sums to C

// The buffers of a warpgroup, used in turn.
struct OutputBuffers {
  WgmmaBuffer* buffers;
  int turn = 0;
  int barrier;  // of the warpgroup's threads
};

template <class T>
__device__ inline float bias_at(const WgmmaProblem& problem, uint32_t index, uint32_t size) {
  if (index >= size) return 0;
  return widen(static_cast<const T*>(problem.bias)[index * problem.bias_stride]);
}

// Two neighbouring numbers of C to shared memory.
template <class C>
__device__ inline void put_pair(unsigned char* to, float first, float second) {
  if constexpr (sizeof(C) == 2) {
    C low, high;
    narrow(first, low);
    narrow(second, high);
    *reinterpret_cast<uint32_t*>(to) = low.bits | static_cast<uint32_t>(high.bits) << 16;
  } else {
    *reinterpret_cast<float2*>(to) = make_float2(first, second);
  }
}

// Stores the sums of a warpgroup, whose first is at m, n of C, in pieces 128 bytes wide. The lanes
// that write to a buffer at the same time are 8 lines by 16 or 32 bytes: with C of 2 bytes they
// meet no bank twice, with float32 every bank twice.
template <class T, class C, class Shape>
__device__ inline void store_sums(const WgmmaProblem& problem, const WgmmaWork& work, uint32_t m,
                                  uint32_t n, const float (&sums)[Shape::kSums],
                                  OutputBuffers& buffers) {
  constexpr int kSize = static_cast<int>(sizeof(C));
  constexpr int kCols = kSwizzleLine / kSize;  // of a piece
  const WgmmaOutput& out = problem.out;
  const int thread = static_cast<int>(threadIdx.x) % kWarpgroup, lane = thread % 32;
  const int first_row = thread / 32 * 16;  // of the warp
  const bool biased = problem.bias != nullptr;
  float row_bias[2] = {0, 0};
  if (biased && problem.bias_on_rows) {
    row_bias[0] = bias_at<T>(problem, m + wgmma_sum_row(thread, 0), problem.m);
    row_bias[1] = bias_at<T>(problem, m + wgmma_sum_row(thread, 2), problem.m);
  }
  const BatchCoordinates batch = coordinates(out.batch, work.position);
  C* rows = nullptr;  // the warp's first row in C, and there the lane's first column
  if (!out.copies) {
    rows = static_cast<C*>(out.data) + out.positions.at(work.position) +
           (m + first_row) * out.row_step + (n + lane) * out.col_step;
  }
#pragma unroll
  for (int piece = 0; piece < Shape::kTileN / kCols; ++piece) {
    const uint32_t col = n + piece * kCols;
    if (col >= problem.n) break;
    // A bias along the columns: two of the piece in each lane, on their way from memory meanwhile.
    const bool by_columns = biased && !problem.bias_on_rows;
    float held[2] = {0, 0};
    if (by_columns && 2 * lane < kCols) {
      held[0] = bias_at<T>(problem, col + 2 * lane, problem.n);
      held[1] = bias_at<T>(problem, col + 2 * lane + 1, problem.n);
    }
    unsigned char* buffer = buffers.buffers[buffers.turn].bytes;
    buffers.turn ^= 1;
    if (out.copies) {
      if (thread == 0) hopper::wait_for_stores<1>();  // the one from the other buffer
      hopper::sync_threads(buffers.barrier, kWarpgroup);
    } else {
      __syncwarp();  // a warp reads its own lines only
    }
#pragma unroll
    for (int eight = 0; eight < kCols / 8; ++eight) {
      const int i = (piece * kCols / 8 + eight) * 4;
      const int in_piece = eight * 8 + wgmma_sum_col(lane, 0);
      float col_bias[2] = {0, 0};
      if (by_columns) {
        col_bias[0] = __shfl_sync(0xffffffff, held[0], in_piece / 2);
        col_bias[1] = __shfl_sync(0xffffffff, held[1], in_piece / 2);
      }
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int line = wgmma_sum_row(thread, half * 2);
        const uint32_t byte = swizzled(line * kSwizzleLine + in_piece * kSize);
        put_pair<C>(buffer + byte,
                    sums[i + half * 2] * problem.scale + (row_bias[half] + col_bias[0]),
                    sums[i + half * 2 + 1] * problem.scale + (row_bias[half] + col_bias[1]));
      }
    }
    if (out.copies) {
      hopper::publish_to_copies();
      hopper::sync_threads(buffers.barrier, kWarpgroup);
      if (thread == 0) {
        hopper::store_box(
            out.map,
            {static_cast<int>(col), static_cast<int>(m), batch.at[0], batch.at[1], batch.at[2]},
            buffer);
        hopper::commit_stores();
      }
    } else {
      __syncwarp();
      C* row = rows + piece * kCols * out.col_step;
      for (int line = first_row; line < first_row + 16 && m + line < problem.m; ++line) {
#pragma unroll
        for (int at = 0; at < kCols; at += 32) {
          if (col + at + lane >= problem.n) continue;
          const uint32_t byte = swizzled(line * kSwizzleLine + (at + lane) * kSize);
          row[at * out.col_step] = *reinterpret_cast<const C*>(buffer + byte);
        }
        row += out.row_step;
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// The consumers

template <class T, class Shape, class TileA, class TileB>
__device__ inline void consume(const WgmmaProblem& problem, WgmmaShared<Shape>& shared,
                               int consumer) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
  const uint64_t first_a =
      TileA::descriptor(hopper::shared_address(shared.a[0]), consumer * kWgmmaRows, 0);
  const uint64_t first_b = TileB::descriptor(hopper::shared_address(shared.b[0]), 0, 0);
  OutputBuffers buffers{shared.c[consumer], 0, 1 + consumer};
  RingPosition<Shape::kStages> ring;
  float sums[Shape::kSums];
  const uint32_t count = problem.schedule.count();
  for (uint32_t index = blockIdx.x; index < count; index += gridDim.x) {
    const WgmmaWork work = problem.schedule.at(index);
    int previous = 0;
    for (uint32_t s = work.first; s < work.last; ++s) {
      const int stage = ring.stage;
      hopper::wait(shared.full[stage], ring.parity);
      const uint64_t a = first_a + static_cast<uint32_t>(stage * (TileA::kBytes / 16));
      const uint64_t b = first_b + static_cast<uint32_t>(stage * (TileB::kBytes / 16));
      hopper::begin_products(sums);
#pragma unroll
      for (int k = 0; k < kStageDepth; k += kWgmmaDepth) {
        hopper::multiply<TileA::kTransposed, TileB::kTransposed>(
            sums, a + TileA::descriptor_step(k), b + TileB::descriptor_step(k),
            k > 0 || s > work.first, T{});
      }
      hopper::commit_products();
      // Those of this stage go on while those of the stage before are known to be done.
      hopper::wait_for_products<1>(sums);
      if (s > work.first && lane == 0) hopper::arrive(shared.empty[previous]);
      previous = stage;
      ring.advance();
    }
    hopper::wait_for_products<0>(sums);
    if (lane == 0) hopper::arrive(shared.empty[previous]);

    const uint32_t m = work.m * Shape::kTileM + consumer * kWgmmaRows;
    const uint32_t n = work.n * Shape::kTileN;
    if (m >= problem.m) continue;
    if (problem.out.is_float) {
      store_sums<T, float, Shape>(problem, work, m, n, sums, buffers);
    } else {
      store_sums<T, T, Shape>(problem, work, m, n, sums, buffers);
    }
  }
  if (static_cast<int>(threadIdx.x) % kWarpgroup == 0) hopper::wait_for_stores<0>();
}

template <class T, int kN, Major kMajorA, Major kMajorB>
__global__ void __launch_bounds__(WgmmaShape<kN>::kThreads, 1)
    wgmma_gemm(const __grid_constant__ WgmmaProblem problem) {
  using Shape = WgmmaShape<kN>;
  using TileA = WgmmaTile<kMajorA, Shape::kTileM>;
  using TileB = WgmmaTile<kMajorB, Shape::kTileN>;
  auto& shared = shared_memory<WgmmaShared<Shape>>();
  // The same in all lanes, which the compiler sees of a shuffle.
  const int group = __shfl_sync(0xffffffff, static_cast<int>(threadIdx.x) / kWarpgroup, 0);
  if (threadIdx.x == 0) {
    hopper::prefetch_map(problem.a);
    hopper::prefetch_map(problem.b);
    if (problem.out.copies) hopper::prefetch_map(problem.out.map);
    for (int stage = 0; stage < Shape::kStages; ++stage) {
      hopper::init_barrier(shared.full[stage], 1);
      hopper::init_barrier(shared.empty[stage], Shape::kConsumers * kWarpgroup / 32);
    }
    hopper::publish_barriers();
  }
  __syncthreads();
  if (group == 0) {
    hopper::give_registers<Shape::kProducerRegisters>();
    if (threadIdx.x == 0) produce<Shape, TileA, TileB>(problem, shared);
  } else {
    hopper::take_registers<Shape::kConsumerRegisters>();
    consume<T, Shape, TileA, TileB>(problem, shared, group - 1);
  }
}

template <class T, int kN>
constexpr const char* wgmma_name() {
  if (std::is_same_v<T, Bf16>) return kN == 256 ? "wgmma_bf16_128x256" : "wgmma_bf16_128x128";
  return kN == 256 ? "wgmma_f16_128x256" : "wgmma_f16_128x128";
}

template <class T, int kN, Major kMajorA, Major kMajorB>
void launch_one(const WgmmaProblem& problem, const Device& device) {
  using Shape = WgmmaShape<kN>;
  const int64_t blocks =
      std::min<int64_t>(problem.schedule.count(), device.limits().multiprocessors);
  launch(wgmma_name<T, kN>(), wgmma_gemm<T, kN, kMajorA, kMajorB>, blocks, Shape::kThreads,
         sizeof(WgmmaShared<Shape>), device, problem);
}

}  // namespace

template <class T, int kN>
void launch_wgmma(const WgmmaProblem& problem, Major a, Major b, const Device& device) {
  if (a == Major::kDepth && b == Major::kDepth) {
    launch_one<T, kN, Major::kDepth, Major::kDepth>(problem, device);
  } else if (a == Major::kDepth) {
    launch_one<T, kN, Major::kDepth, Major::kWidth>(problem, device);
  } else if (b == Major::kDepth) {
    launch_one<T, kN, Major::kWidth, Major::kDepth>(problem, device);
  } else {
    launch_one<T, kN, Major::kWidth, Major::kWidth>(problem, device);
  }
}

}  // namespace matcalc::cuda
