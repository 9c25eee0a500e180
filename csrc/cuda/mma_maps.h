// Where everything lies in the tensor-core gemm of mma.cuh: an operand's tile in shared memory, the
// fragments of it that a warp's lanes hold, and the tiles of C in the grid. Plain arithmetic.
#pragma once

#include <cstdint>

#include "../numbers.h"

namespace matcalc::cuda {

// An operand is seen as width x depth: the width is the rows of A or the columns of B, the depth is
// k. Its tile is stored by the direction that is contiguous in memory, in lines along it.
enum class Major { kDepth, kWidth };
enum class Side { kA, kB };

constexpr int kChunkBytes = 16;  // what one thread copies at a time, and a row of an 8 x 8 matrix
constexpr int kBankBytes = 128;  // that the 32 banks of shared memory serve at once
constexpr int kLineChunks = kBankBytes / kChunkBytes;
constexpr int kDepthBytes = 64;     // of a tile along its depth
constexpr int kFragmentWidth = 16;  // rows of A, or columns of B, in a fragment

// Depth that one fragment covers: one mma.m16n8k16 of 16-bit numbers, one m16n8k8 of wider ones.
template <class T>
inline constexpr int kFragmentDepth = sizeof(T) == 2 ? 16 : 8;

// Whether fragments are read by ldmatrix, which moves 4-byte pieces of 16-byte rows and, for what
// is transposed on the way, 2-byte pieces.
template <class T, Major kMajor>
inline constexpr bool kByLdmatrix = sizeof(T) == 2 || (sizeof(T) == 4 && kMajor == Major::kDepth);

// A fragment is four registers in each lane, for the four quarters of 16 of the width by a half of
// its depth each. In A these are the operand of one mma; in B of two, each of them 8 columns wide
// and two registers, which must be neighbours. In a quarter, a lane holds the number (of 16-bit
// ones, the pair) at width lane / 4 and depth lane % 4.
constexpr MATCALC_HD int width_half(Side side, int r) { return side == Side::kA ? r % 2 : r / 2; }
constexpr MATCALC_HD int depth_half(Side side, int r) { return side == Side::kA ? r / 2 : r % 2; }

// The tile of one operand, kTileWidth x 64 bytes of depth, in shared memory, so that neither
// writing 8 chunks of a line nor reading a fragment meets a bank twice.
//
// One access of ldmatrix reads one chunk from each of 8 lines. Where fragments are read number by
// number, an access takes 4 of the depth and 8 of the width (8-byte numbers, half a warp's at a
// time: 4 and 4): 2 neighbouring chunks from each of 4 lines. So the chunks of a line are permuted,
// in groups of 1 or 2, by an xor that depends on the line. Only lines along the width that are read
// number by number have 2 chunks of padding instead, to the same end: the xor would cost a register
// for each address, and those kernels have none to spare.
template <class T, Major kMajor, int kTileWidth>
struct TileMap {
  static constexpr int kPerChunk = kChunkBytes / static_cast<int>(sizeof(T));
  static constexpr int kDepth = kDepthBytes / static_cast<int>(sizeof(T));
  static constexpr int kLines = kMajor == Major::kDepth ? kTileWidth : kDepth;
  static constexpr int kAlong = kMajor == Major::kDepth ? kDepth : kTileWidth;  // numbers in a line
  static constexpr int kChunks = kAlong / kPerChunk;                            // chunks in a line

  static constexpr bool kPadded = !kByLdmatrix<T, kMajor> && kMajor == Major::kWidth;
  static constexpr int kLine = kChunks + (kPadded ? 2 : 0);  // chunks from one line to the next
  static constexpr int kBytes = kLines * kLine * kChunkBytes;

  static constexpr int kGroup = kByLdmatrix<T, kMajor> ? 1 : 2;
  static constexpr int kLinesPerRow = kChunks < kLineChunks ? kLineChunks / kChunks : 1;
  static constexpr int kPositions = (kChunks < kLineChunks ? kChunks : kLineChunks) / kGroup;

  static constexpr MATCALC_HD int swizzle(int line) {
    return kPadded ? 0 : line / kLinesPerRow % kPositions * kGroup;
  }
  // Where the chunk of a line lies, in chunks from the tile's begin.
  static constexpr MATCALC_HD int chunk(int line, int chunk) {
    return line * kLine + (chunk ^ swizzle(line));
  }
  // Where the number w, k lies, in numbers.
  static constexpr MATCALC_HD int number(int w, int k) {
    const int line = kMajor == Major::kDepth ? w : k, along = kMajor == Major::kDepth ? k : w;
    return chunk(line, along / kPerChunk) * kPerChunk + along % kPerChunk;
  }

  // The chunk whose address a lane gives to ldmatrix (x4) for the fragment at w, k: lanes 8 r ...
  // 8 r + 7 give the rows of register r's 8 x 8 matrix. Stored along the width, the matrices have
  // their rows along it and are transposed by the load.
  static constexpr MATCALC_HD int fragment_chunk(Side side, int w, int k, int lane) {
    const int r = lane / 8, row = lane % 8;
    if (kMajor == Major::kDepth) {
      return chunk(w + row + width_half(side, r) * 8, k / kPerChunk + depth_half(side, r));
    }
    return chunk(k + row + depth_half(side, r) * 8, w / kPerChunk + width_half(side, r));
  }
};

// With 4- and 8-byte numbers, the number that register r of a lane holds.
constexpr MATCALC_HD int fragment_w(Side side, int lane, int r) {
  return lane / 4 + width_half(side, r) * 8;
}
constexpr MATCALC_HD int fragment_k(Side side, int lane, int r) {
  return lane % 4 + depth_half(side, r) * 4;
}

// The four sums of a lane in a 16 x 8 piece of C.
constexpr MATCALC_HD int sum_row(int lane, int r) { return lane / 4 + r / 2 * 8; }
constexpr MATCALC_HD int sum_col(int lane, int r) { return lane % 4 * 2 + r % 2; }

// From one row of sums to the next in the memory in which a warp turns them: lanes write two beside
// each other and read 16 bytes. 8 numbers more than the row, so that the four (8 bytes each: two)
// rows that one access writes to lie in different banks.
constexpr int turn_row(int cols) { return cols + 8; }

// Which numbers of a tile a thread loads, one by one or by chunks, in several passes: in each, what
// first(thread) says plus step(pass).
struct Position {
  int w, k;
};

// The byte of the tile at first + step is (the byte at first ^ flip) + add: an address is a
// register and constants. This holds where first + step is made without a carry within the bits
// that choose the swizzle, and within the first 8 chunks of a line; there is no flip in padded
// lines.
struct ByteStep {
  int flip, add;
};
template <class Map, Major kMajor>
constexpr MATCALC_HD ByteStep byte_step(Position step) {
  const int lines = kMajor == Major::kDepth ? step.w : step.k;
  const int chunks = (kMajor == Major::kDepth ? step.k : step.w) / Map::kPerChunk;
  if (Map::kPadded) return {0, (lines * Map::kLine + chunks) * kChunkBytes};
  return {(Map::swizzle(lines) ^ chunks % kLineChunks) * kChunkBytes,
          (lines * Map::kLine + chunks / kLineChunks * kLineChunks) * kChunkBytes};
}

// One by one: consecutive lanes take consecutive numbers of a line.
template <class Map, Major kMajor, int kThreads>
struct NumberLanes {
  static constexpr int kPasses = Map::kLines * Map::kAlong / kThreads;
  static constexpr int kWarps = kThreads / 32;

  static constexpr MATCALC_HD Position first(int thread) {
    if (kMajor == Major::kWidth) return {thread % 32, thread / 32};
    return {thread / Map::kDepth, thread % Map::kDepth};
  }
  // Of a matrix that is read together with its transpose: a warp takes 8 of the width and 4 of the
  // depth, and what it reads lies in few lines of memory both times.
  static constexpr MATCALC_HD Position first_in_square(int thread) {
    constexpr int kAcross = Map::kDepth / 4;
    return {thread / 32 / kAcross * 8 + thread % 32 / 4, thread / 32 % kAcross * 4 + thread % 4};
  }
  static constexpr MATCALC_HD Position step(int pass) {
    if (kMajor == Major::kDepth) return {pass * (kThreads / Map::kDepth), 0};
    constexpr int kDown = Map::kDepth / kWarps;  // passes down the depth
    return {pass / kDown * 32, pass % kDown * kWarps};
  }
};

// By chunks: consecutive lanes take consecutive chunks of a line.
template <class Map, Major kMajor, int kThreads>
struct ChunkLanes {
  static constexpr int kPasses = Map::kLines * Map::kChunks / kThreads;
  static constexpr int kLines = kThreads / Map::kChunks;

  static constexpr MATCALC_HD Position first(int thread) {
    const int line = thread / Map::kChunks, along = thread % Map::kChunks * Map::kPerChunk;
    return kMajor == Major::kDepth ? Position{line, along} : Position{along, line};
  }
  static constexpr MATCALC_HD Position step(int pass) {
    return kMajor == Major::kDepth ? Position{pass * kLines, 0} : Position{0, pass * kLines};
  }
};

// The order of the tiles of C: down kOrderRows rows of tiles, then on by a column, so that the
// blocks that run at the same time share rows of A and columns of B in L2.
constexpr uint32_t kOrderRows = 8;
struct TileOfC {
  uint32_t m, n;
};
constexpr MATCALC_HD TileOfC tile_in_order(uint32_t index, uint32_t tiles_m, uint32_t tiles_n) {
  const uint32_t first = index / tiles_n / kOrderRows * kOrderRows;
  const uint32_t left = tiles_m - first, rows = left < kOrderRows ? left : kOrderRows;
  const uint32_t within = index - first * tiles_n;
  return {first + within % rows, within / rows};
}

}  // namespace matcalc::cuda
