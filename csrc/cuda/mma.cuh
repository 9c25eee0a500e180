// The tensor-core gemm: bf16 and f16 by mma.m16n8k16, float32 rounded to TF32 and float64 by
// m16n8k8, sums in float32 (float64).
//
// A block computes a tile of C. Its warps share a ring of tiles of A and B in shared memory, each
// 64 bytes deep, and keep the sums in registers; at the end every warp sends its sums through
// shared memory to C in whole lines.
#pragma once

#include "launch.cuh"
#include "mma_loaders.cuh"

namespace matcalc::cuda {

// The tile of C of a block, see MmaShape.
enum class MmaSize { kSmall, kLarge, kWide };
constexpr int mma_rows(MmaSize size) { return size == MmaSize::kSmall ? 64 : 128; }
constexpr int mma_cols(MmaSize size) {
  return size == MmaSize::kSmall ? 64 : size == MmaSize::kLarge ? 128 : 256;
}

// Launches the kernel for numbers of type T (Bf16, F16, float as TF32, double); in mma_<type>.cu.
struct MmaVariant {
  MmaSize size;
  bool plain;  // both operands by the plain loader
  Major major_a, major_b;
};
template <class T>
void launch_mma(const MmaProblem& problem, const MmaVariant& variant, const Device& device);

extern template void launch_mma<Bf16>(const MmaProblem&, const MmaVariant&, const Device&);
extern template void launch_mma<F16>(const MmaProblem&, const MmaVariant&, const Device&);
extern template void launch_mma<float>(const MmaProblem&, const MmaVariant&, const Device&);
extern template void launch_mma<double>(const MmaProblem&, const MmaVariant&, const Device&);

// Which sizes there are: with the general loader larger ones for TF32 only, the type of generated
// operands; a wide float64 tile would not fit the registers.
constexpr MmaSize largest_size(Dtype numbers, bool plain) {
  if (plain) return numbers == Dtype::kFloat64 ? MmaSize::kLarge : MmaSize::kWide;
  return numbers == Dtype::kFloat32 ? MmaSize::kLarge : MmaSize::kSmall;
}

// The tiles of C of a block and of a warp.
//
// Plain operands, large and wide: warps of 64 x 64. For 16 (8, with TF32) of depth a warp reads 4
// KiB of fragments for 32 multiplications; smaller tiles would meet the limit of shared memory (128
// bytes a clock) before that of the tensor cores. 128 sums and two times 32 registers of fragments
// leave 8 warps to a multiprocessor, at most 255 registers each.
//   Wide, 128 x 256: they are one block. Per product it reads three quarters of what the large tile
//   does, whose need of L2 at full speed is more than what L2 gives on 9.0. Stages are 24 KiB.
//   Large, 128 x 128: two blocks of four warps, which fill each other's waits. Stages are 16 KiB.
//   Three stages: two are on their way while one is multiplied, some 1000 clocks each. On the chips
//   with the least shared memory (8.6, 8.9: 99 KiB for a block, 100 KiB in all) every block fits,
//   and two large ones do (but for TF32 along the width, whose padding makes it one).
//   Float64 sums take twice the registers: large is eight warps of 64 x 32, one block.
// General operands, large: eight warps of 64 x 32, for the loader needs up to 32 registers.
// Small, 64 x 64: four warps of 32 x 32, for products whose large tiles would leave multiprocessors
// idle. 32 sums; at most 128 registers and four blocks to a multiprocessor, three (168 registers)
// with the general loader or with float64, two with both. Four stages of 8 KiB.
template <class T, MmaSize kSize, bool kPlain>
struct MmaShape {
  static constexpr bool kSmall = kSize == MmaSize::kSmall, kDouble = sizeof(T) == 8;
  static constexpr int kTileM = mma_rows(kSize), kTileN = mma_cols(kSize);
  static constexpr int kWarpM = kSmall ? 32 : 64;
  static constexpr int kWarpN = !kSmall && kPlain && !kDouble ? 64 : 32;
  static constexpr int kWarpsN = kTileN / kWarpN;
  static constexpr int kThreads = kTileM / kWarpM * kWarpsN * 32;
  static constexpr int kStages = !kPlain ? 2 : kSmall ? 4 : 3;
  static constexpr int kMinBlocks = kSmall            ? 4 - (kPlain ? 0 : 1) - (kDouble ? 1 : 0)
                                    : kThreads == 128 ? 2
                                                      : 1;
};

namespace {

// A fragment's four registers, the type of the sums, and how many numbers of it make 16 bytes.
template <class T>
struct MmaTypes {
  using Register = uint32_t;
  using Sum = float;
  static constexpr int kQuad = 4;
};
template <>
struct MmaTypes<double> {
  using Register = double;
  using Sum = double;
  static constexpr int kQuad = 2;
};

template <class T, Side kSide, Major kMajor, int kTileWidth, bool kRound>
__device__ inline void load_fragment(const unsigned char* tile, int w, int k,
                                     typename MmaTypes<T>::Register (&fragment)[4]) {
  using Map = TileMap<T, kMajor, kTileWidth>;
  using Register = typename MmaTypes<T>::Register;
  const int lane = static_cast<int>(threadIdx.x) % 32;
  if constexpr (kByLdmatrix<T, kMajor>) {
    const unsigned char* row = tile + Map::fragment_chunk(kSide, w, k, lane) * kChunkBytes;
    if constexpr (kMajor == Major::kDepth) {
      load_matrices(row, fragment);
    } else {
      load_matrices_transposed(row, fragment);
    }
  } else {
    const Register* numbers = reinterpret_cast<const Register*>(tile);
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      fragment[r] =
          numbers[Map::number(w + fragment_w(kSide, lane, r), k + fragment_k(kSide, lane, r))];
    }
  }
  if constexpr (kRound && sizeof(T) == 4) {
#pragma unroll
    for (int r = 0; r < 4; ++r) fragment[r] = round_to_tf32(float_of(fragment[r]));
  }
}

// What a warp holds of one step of a tile's depth.
template <class T, class Shape, Major kMajorA, Major kMajorB>
struct Fragments {
  static constexpr int kRows = Shape::kWarpM / kFragmentWidth;
  static constexpr int kCols = Shape::kWarpN / kFragmentWidth;
  typename MmaTypes<T>::Register a[kRows][4], b[kCols][4];

  // kRound: the tiles are float32 as it came from memory.
  template <bool kRound>
  __device__ void load(const unsigned char* tile_a, const unsigned char* tile_b, int row, int col,
                       int k) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
      load_fragment<T, Side::kA, kMajorA, Shape::kTileM, kRound>(tile_a, row + i * kFragmentWidth,
                                                                 k, a[i]);
    }
#pragma unroll
    for (int j = 0; j < kCols; ++j) {
      load_fragment<T, Side::kB, kMajorB, Shape::kTileN, kRound>(tile_b, col + j * kFragmentWidth,
                                                                 k, b[j]);
    }
  }
};

// One warp's part of a tile of C.
template <class T, class Shape>
struct WarpSums {
  using Sum = typename MmaTypes<T>::Sum;
  static constexpr int kRows = Shape::kWarpM / 16, kCols = Shape::kWarpN / 8;

  Sum sums[kRows][kCols][4] = {};

  // Where in the block's tile.
  static __device__ int row(int thread) { return thread / 32 / Shape::kWarpsN * Shape::kWarpM; }
  static __device__ int col(int thread) { return thread / 32 % Shape::kWarpsN * Shape::kWarpN; }

  template <class Step>
  __device__ void multiply(const Step& fragments) {
#pragma unroll
    for (int i = 0; i < kRows; ++i) {
#pragma unroll
      for (int j = 0; j < kCols; ++j) {
        const auto* b = fragments.b[j / 2] + j % 2 * 2;
        multiply_fragments(sums[i][j], fragments.a[i], b[0], b[1], T{});
      }
    }
  }
};

// ---------------------------------------------------------------------------------------------
// From the sums to C.

// Where a warp turns its sums, 16 rows at a time.
template <class Sum, int kCols>
struct TurnBuffer {
  static constexpr int kRow = turn_row(kCols);
  alignas(kChunkBytes) Sum sums[16 * kRow];
};

template <class Sum>
__device__ inline Sum load_bias(const Gemm& gemm, int64_t index) {
  const int64_t at = index * gemm.bias_stride;
  if constexpr (sizeof(Sum) == 8) {
    return static_cast<const double*>(gemm.bias)[at];
  } else if (gemm.dtype == Dtype::kFloat32) {
    return static_cast<const float*>(gemm.bias)[at];
  } else {
    uint32_t word[1] = {static_cast<const uint16_t*>(gemm.bias)[at]};
    widen_words(word, gemm.dtype);
    return float_of(word[0]);
  }
}

// As many numbers of C as make 16 bytes of sums, side by side and aligned.
template <class C, class Sum, int kQuad>
__device__ inline void store_quad(C* to, const Sum (&values)[kQuad]) {
  if constexpr (sizeof(C) == 2) {
    C narrowed[kQuad];
#pragma unroll
    for (int q = 0; q < kQuad; ++q) narrow(values[q], narrowed[q]);
    const auto pair = [&](int q) {
      return narrowed[q].bits | static_cast<uint32_t>(narrowed[q + 1].bits) << 16;
    };
    *reinterpret_cast<uint2*>(to) = make_uint2(pair(0), pair(2));
  } else if constexpr (sizeof(C) == 4) {
    *reinterpret_cast<float4*>(to) = make_float4(values[0], values[1], values[2], values[3]);
  } else {
    *reinterpret_cast<double2*>(to) = make_double2(values[0], values[1]);
  }
}

// Columns that a lane stores, and where.
template <int kQuad>
struct QuadOfC {
  int64_t offset[kQuad];
  int count;   // inside C
  bool whole;  // to be stored in one piece
};

template <class C, class Sum, int kQuad>
__device__ inline void store_row(void* c, int64_t row, const QuadOfC<kQuad>& quad,
                                 const Sum (&values)[kQuad]) {
  C* to = static_cast<C*>(c) + row;
  if (quad.whole) {
    store_quad(to + quad.offset[0], values);
    return;
  }
#pragma unroll
  for (int q = 0; q < kQuad; ++q) {
    if (q < quad.count) narrow(values[q], to[quad.offset[q]]);
  }
}

// 16 rows of a warp's sums to its buffer.
template <int kRow, class Sum, int kCols>
__device__ inline void turn(const Sum (&sums)[kCols][4], Sum* buffer, int lane) {
#pragma unroll
  for (int j = 0; j < kCols; ++j) {
#pragma unroll
    for (int r = 0; r < 4; r += 2) {
      Sum* to = buffer + sum_row(lane, r) * kRow + j * 8 + sum_col(lane, r);
      if constexpr (sizeof(Sum) == 8) {
        *reinterpret_cast<double2*>(to) = make_double2(sums[j][r], sums[j][r + 1]);
      } else {
        *reinterpret_cast<float2*>(to) = make_float2(sums[j][r], sums[j][r + 1]);
      }
    }
  }
}

// Stores a warp's sums; m, n is the first of the block's tile.
template <class T, class Shape>
__device__ inline void store_sums(const MmaProblem& problem, int64_t item, uint32_t split,
                                  const WarpSums<T, Shape>& warp, int64_t m, int64_t n,
                                  TurnBuffer<typename MmaTypes<T>::Sum, Shape::kWarpN>* buffers) {
  using Sums = WarpSums<T, Shape>;
  using Sum = typename Sums::Sum;
  using Buffer = TurnBuffer<Sum, Shape::kWarpN>;
  constexpr int kQuad = MmaTypes<T>::kQuad;
  constexpr int kLanes = Shape::kWarpN / kQuad;  // that store one row
  const Gemm& gemm = problem.gemm;
  const int thread = read_thread_index(), lane = thread % 32;
  const int first_row = lane / kLanes, col = lane % kLanes * kQuad;
  Buffer& buffer = buffers[thread / 32];
  m += Sums::row(thread);
  n += Sums::col(thread);
  const Sum scale = static_cast<Sum>(gemm.scale);
  const int64_t base = gemm.batch_c.at(item) + split * problem.split_c;

  QuadOfC<kQuad> quad;
  quad.count = gemm.n - n - col < 0 ? 0 : smaller(gemm.n - n - col, kQuad);
  quad.whole = problem.chunks_c && quad.count == kQuad;
  Sum bias[kQuad];
#pragma unroll
  for (int q = 0; q < kQuad; ++q) {
    const bool inside = q < quad.count;
    quad.offset[q] = inside ? gemm.n_c.at(n + col + q) : 0;
    const bool biased = inside && gemm.bias != nullptr && !gemm.bias_on_rows;
    bias[q] = biased ? load_bias<Sum>(gemm, n + col + q) : Sum{0};
  }

  // One loop over slabs of 16 rows, in which the registers of the slab are chosen: what stores them
  // is long, and is there once.
#pragma unroll 1
  for (int slab = 0; slab < Sums::kRows; ++slab) {
    __syncwarp();  // the slab before has been read
#pragma unroll
    for (int i = 0; i < Sums::kRows; ++i) {
      if (i == slab) turn<Buffer::kRow>(warp.sums[i], buffer.sums, lane);
    }
    __syncwarp();
#pragma unroll 1
    for (int row = first_row; row < 16; row += 32 / kLanes) {
      const int64_t at = m + slab * 16 + row;
      if (at >= gemm.m || quad.count == 0) continue;
      const Sum* from = buffer.sums + row * Buffer::kRow + col;
      Sum values[kQuad];
      if constexpr (sizeof(Sum) == 8) {
        const double2 loaded = *reinterpret_cast<const double2*>(from);
        values[0] = loaded.x;
        values[1] = loaded.y;
      } else {
        const float4 loaded = *reinterpret_cast<const float4*>(from);
        values[0] = loaded.x;
        values[1] = loaded.y;
        values[2] = loaded.z;
        values[3] = loaded.w;
      }
      const bool biased = gemm.bias != nullptr && gemm.bias_on_rows;
      const Sum row_bias = biased ? load_bias<Sum>(gemm, at) : Sum{0};
#pragma unroll
      for (int q = 0; q < kQuad; ++q) values[q] = values[q] * scale + (bias[q] + row_bias);
      const int64_t offset = base + gemm.m_c.at(at);
      if constexpr (sizeof(T) == 8) {
        store_row<double>(gemm.c, offset, quad, values);
      } else {
        if (gemm.dtype_c == Dtype::kFloat32) {
          store_row<float>(gemm.c, offset, quad, values);
        } else if (gemm.dtype_c == Dtype::kBFloat16) {
          store_row<Bf16>(gemm.c, offset, quad, values);
        } else {
          store_row<F16>(gemm.c, offset, quad, values);
        }
      }
    }
  }
}

// ---------------------------------------------------------------------------------------------
// The kernel.

template <class T, class Shape, Major kMajorA, Major kMajorB>
struct MmaRing {
  using MapA = TileMap<T, kMajorA, Shape::kTileM>;
  using MapB = TileMap<T, kMajorB, Shape::kTileN>;
  alignas(kBankBytes) unsigned char a[Shape::kStages][MapA::kBytes];
  alignas(kBankBytes) unsigned char b[Shape::kStages][MapB::kBytes];
};

template <class T, class Shape, Major kMajorA, Major kMajorB>
union MmaShared {  // the buffers are used when the ring no longer is
  MmaRing<T, Shape, kMajorA, kMajorB> ring;
  TurnBuffer<typename MmaTypes<T>::Sum, Shape::kWarpN> buffers[Shape::kThreads / 32];
};

template <class T, class Shape, Major kMajorA, Major kMajorB>
struct MmaGeneralShared {
  MmaShared<T, Shape, kMajorA, kMajorB> tiles;
  OffsetTables<Shape::kTileM, kDepthBytes / static_cast<int>(sizeof(T))> tables_a;
  OffsetTables<Shape::kTileN, kDepthBytes / static_cast<int>(sizeof(T))> tables_b;
};

// The tile of C, and the part of the depth, of a block.
template <class Shape>
struct MmaBlock {
  uint32_t item, split;
  TileOfC tile;

  __device__ explicit MmaBlock(const MmaProblem& problem) {
    const uint32_t tiles = problem.tiles_m * problem.tiles_n;
    const uint32_t index = read_block_index(), part = index / tiles;
    const uint32_t splits = static_cast<uint32_t>(problem.splits);
    tile = tile_in_order(index - part * tiles, problem.tiles_m, problem.tiles_n);
    item = part / splits;
    split = part - item * splits;
  }
  __device__ int64_t m() const { return static_cast<int64_t>(tile.m) * Shape::kTileM; }
  __device__ int64_t n() const { return static_cast<int64_t>(tile.n) * Shape::kTileN; }
  __device__ int64_t k0(const MmaProblem& problem) const { return split * problem.split_depth; }
  __device__ int64_t k1(const MmaProblem& problem) const {
    const int64_t end = k0(problem) + problem.split_depth;
    return end < problem.gemm.k ? end : problem.gemm.k;
  }
};

// Up to kStages tiles are in shared memory or on their way. A warp loads the fragments of the next
// step before it multiplies those of this one, over the border between two tiles too: when the last
// step of a tile is in registers, its stage is free.
template <class T, class Shape, Major kMajorA, Major kMajorB>
__device__ inline void multiply_plain(const MmaProblem& problem,
                                      MmaRing<T, Shape, kMajorA, kMajorB>& ring,
                                      WarpSums<T, Shape>& warp) {
  constexpr int kStages = Shape::kStages;
  using LoaderA = PlainLoader<T, Side::kA, kMajorA, Shape::kTileM, Shape::kThreads>;
  using LoaderB = PlainLoader<T, Side::kB, kMajorB, Shape::kTileN, Shape::kThreads>;
  constexpr int kDepth = LoaderA::Map::kDepth, kSteps = kDepth / kFragmentDepth<T>;
  const MmaBlock<Shape> block(problem);
  const int thread = static_cast<int>(threadIdx.x);
  const int row = WarpSums<T, Shape>::row(thread), col = WarpSums<T, Shape>::col(thread);
  const int64_t k0 = block.k0(problem), k1 = block.k1(problem);
  LoaderA a(problem, block.item, block.m(), k0);
  LoaderB b(problem, block.item, block.n(), k0);
  const int tiles = static_cast<int>((k1 - k0 + kDepth - 1) / kDepth);
  const int last_depth = static_cast<int>(k1 - k0 - int64_t{kDepth} * (tiles - 1));
  int to_load = tiles;
  const auto load = [&](int stage) {
    if (to_load > 0) {
      const int depth = to_load == 1 ? last_depth : kDepth;
      a.load(ring.a[stage], depth);
      b.load(ring.b[stage], depth);
      --to_load;
    }
    commit_copies();  // also where there is none: groups are counted
  };
#pragma unroll
  for (int stage = 0; stage < kStages; ++stage) load(stage);

  // Two sets of registers in turn. One, which other warps' multiplications must hide the loading
  // of, where a tile has a single step (float64) or where reading number by number takes the
  // registers.
  constexpr bool kAhead = kSteps > 1 && kByLdmatrix<T, kMajorA> && kByLdmatrix<T, kMajorB>;
  constexpr int kSets = kAhead ? 2 : 1;
  static_assert(kSteps % kSets == 0);
  Fragments<T, Shape, kMajorA, kMajorB> fragments[kSets];
  const auto load_step = [&](int set, int stage, int step) {
    fragments[set].template load<true>(ring.a[stage], ring.b[stage], row, col,
                                       step * kFragmentDepth<T>);
  };
  wait_for_copies<kStages - 1>();
  __syncthreads();
  load_step(0, 0, 0);
  int stage = 0;
  for (int tile = 0; tile < tiles; ++tile) {
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {
      const int next = (step + 1) % kSteps;
      if (kSets == 1) warp.multiply(fragments[0]);
      if (next == 0) {
        wait_for_copies<kStages - 2>();
        __syncthreads();  // the next tile is there, and everybody has this one's last step
        load(stage);
        stage = stage + 1 == kStages ? 0 : stage + 1;
      }
      load_step(next % kSets, stage, next);  // after the last tile: of no use, and no harm
      if (kSets == 2) warp.multiply(fragments[step % kSets]);
    }
  }
  wait_for_copies<0>();
}

// While one stage is multiplied, the next is loaded to registers.
template <class T, class Shape, Major kMajorA, Major kMajorB>
__device__ inline void multiply_general(const MmaProblem& problem,
                                        MmaGeneralShared<T, Shape, kMajorA, kMajorB>& shared,
                                        WarpSums<T, Shape>& warp) {
  using LoaderA = GeneralLoader<T, Side::kA, kMajorA, Shape::kTileM, Shape::kThreads>;
  using LoaderB = GeneralLoader<T, Side::kB, kMajorB, Shape::kTileN, Shape::kThreads>;
  constexpr int kDepth = LoaderA::Map::kDepth;
  const MmaBlock<Shape> block(problem);
  const int thread = static_cast<int>(threadIdx.x);
  const int row = WarpSums<T, Shape>::row(thread), col = WarpSums<T, Shape>::col(thread);
  const int64_t k0 = block.k0(problem), k1 = block.k1(problem);
  LoaderA a(problem, shared.tables_a, block.item, block.m());
  LoaderB b(problem, shared.tables_b, block.item, block.n());
  MmaRing<T, Shape, kMajorA, kMajorB>& ring = shared.tiles.ring;
  const auto depth_at = [&](int64_t k) { return k < k1 ? smaller(k1 - k, kDepth) : 0; };
  const auto decode = [&](int parity, int64_t k) {
    a.decode(parity, k, depth_at(k));
    b.decode(parity, k, depth_at(k));
  };
  decode(0, k0);
  __syncthreads();
  int parity = 1;  // of the tile that is multiplied: in the first turn, none
  for (int64_t k = k0 - kDepth; k < k1; k += kDepth) {
    // The half of the tables and the stage that are written here were last read before the barrier.
    const int depth = depth_at(k + kDepth);
    a.fetch(parity ^ 1, depth);
    b.fetch(parity ^ 1, depth);
    decode(parity, k + 2 * kDepth);
    if (k >= k0) {
#pragma unroll
      for (int step = 0; step < kDepth; step += kFragmentDepth<T>) {
        Fragments<T, Shape, kMajorA, kMajorB> fragments;
        fragments.template load<false>(ring.a[parity], ring.b[parity], row, col, step);
        warp.multiply(fragments);
      }
    }
    a.deposit(ring.a[parity ^ 1], depth);
    b.deposit(ring.b[parity ^ 1], depth);
    __syncthreads();
    parity ^= 1;
  }
}

template <class T, MmaSize kSize, bool kPlain, Major kMajorA, Major kMajorB>
__global__ void __launch_bounds__(MmaShape<T, kSize, kPlain>::kThreads,
                                  MmaShape<T, kSize, kPlain>::kMinBlocks)
    mma_gemm(const __grid_constant__ MmaProblem problem) {
#if defined(MATCALC_CUDA_EMULATION) || __CUDA_ARCH__ >= 800
  using Shape = MmaShape<T, kSize, kPlain>;
  WarpSums<T, Shape> warp;
  using Shared = MmaShared<T, Shape, kMajorA, kMajorB>;
  Shared* tiles;
  if constexpr (kPlain) {
    tiles = &shared_memory<Shared>();
    multiply_plain<T, Shape, kMajorA, kMajorB>(problem, tiles->ring, warp);
  } else {
    auto& shared = shared_memory<MmaGeneralShared<T, Shape, kMajorA, kMajorB>>();
    tiles = &shared.tiles;
    multiply_general<T, Shape, kMajorA, kMajorB>(problem, shared, warp);
  }
  __syncthreads();  // of the ring nothing is read any more, not even what is of no use
  const MmaBlock<Shape> block(problem);  // made again: beside the sums there was no room for it
  store_sums(problem, block.item, block.split, warp, block.m(), block.n(), tiles->buffers);
#else
  (void)problem;  // never launched on these
#endif
}

template <class T>
const char* mma_name(MmaSize size, bool plain) {
  constexpr const char* kNames[4][2][3] = {
      {{"mma_bf16_general_64", nullptr, nullptr}, {"mma_bf16_64", "mma_bf16_128", "mma_bf16_256"}},
      {{"mma_f16_general_64", nullptr, nullptr}, {"mma_f16_64", "mma_f16_128", "mma_f16_256"}},
      {{"mma_tf32_general_64", "mma_tf32_general_128", nullptr},
       {"mma_tf32_64", "mma_tf32_128", "mma_tf32_256"}},
      {{"mma_f64_general_64", nullptr, nullptr}, {"mma_f64_64", "mma_f64_128", nullptr}}};
  constexpr int kRow = std::is_same_v<T, Bf16>    ? 0
                       : std::is_same_v<T, F16>   ? 1
                       : std::is_same_v<T, float> ? 2
                                                  : 3;
  return kNames[kRow][plain][static_cast<int>(size)];
}

template <class T, MmaSize kSize, bool kPlain, Major kMajorA, Major kMajorB>
void launch_one(const MmaProblem& problem, const Device& device) {
  using Shape = MmaShape<T, kSize, kPlain>;
  using Shared = std::conditional_t<kPlain, MmaShared<T, Shape, kMajorA, kMajorB>,
                                    MmaGeneralShared<T, Shape, kMajorA, kMajorB>>;
  const int64_t blocks =
      static_cast<int64_t>(problem.tiles_m) * problem.tiles_n * problem.splits * problem.gemm.items;
  launch(mma_name<T>(kSize, kPlain), mma_gemm<T, kSize, kPlain, kMajorA, kMajorB>, blocks,
         Shape::kThreads, sizeof(Shared), device, problem);
}

template <class T, MmaSize kSize, bool kPlain>
void launch_by_major(const MmaProblem& problem, Major a, Major b, const Device& device) {
  if (a == Major::kDepth && b == Major::kDepth) {
    launch_one<T, kSize, kPlain, Major::kDepth, Major::kDepth>(problem, device);
  } else if (a == Major::kDepth) {
    launch_one<T, kSize, kPlain, Major::kDepth, Major::kWidth>(problem, device);
  } else if (b == Major::kDepth) {
    launch_one<T, kSize, kPlain, Major::kWidth, Major::kDepth>(problem, device);
  } else {
    launch_one<T, kSize, kPlain, Major::kWidth, Major::kWidth>(problem, device);
  }
}

template <class T, bool kPlain>
void launch_by_size(const MmaProblem& problem, const MmaVariant& variant, const Device& device) {
  constexpr Dtype kNumbers = sizeof(T) == 2   ? Dtype::kBFloat16
                             : sizeof(T) == 4 ? Dtype::kFloat32
                                              : Dtype::kFloat64;
  constexpr MmaSize kLargest = largest_size(kNumbers, kPlain);
  if constexpr (kLargest == MmaSize::kWide) {
    if (variant.size == MmaSize::kWide) {
      return launch_by_major<T, MmaSize::kWide, kPlain>(problem, variant.major_a, variant.major_b,
                                                        device);
    }
  }
  if constexpr (kLargest != MmaSize::kSmall) {
    if (variant.size == MmaSize::kLarge) {
      return launch_by_major<T, MmaSize::kLarge, kPlain>(problem, variant.major_a, variant.major_b,
                                                         device);
    }
  }
  launch_by_major<T, MmaSize::kSmall, kPlain>(problem, variant.major_a, variant.major_b, device);
}

}  // namespace

template <class T>
void launch_mma(const MmaProblem& problem, const MmaVariant& variant, const Device& device) {
  if (variant.plain) {
    launch_by_size<T, true>(problem, variant, device);
  } else {
    launch_by_size<T, false>(problem, variant, device);
  }
}

}  // namespace matcalc::cuda
