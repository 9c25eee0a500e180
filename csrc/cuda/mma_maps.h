// Where everything lies in the tensor-core gemm of mma.cuh: an operand's tile in shared memory, the
// fragments of it that a warp's lanes hold, and the tiles of C in the grid. Plain arithmetic.
#pragma once

#include <cstdint>

#include "../numbers.h"

namespace matcalc::cuda {

// An operand is seen as width x depth: the width is the rows of A or the columns of B, the depth is
// k. Its tile is stored by the direction that is contiguous in memory, in lines along it.
enum class Major { kDepth, kWidth };

constexpr int kChunkBytes = 16;   // what one thread copies at a time, and a row of an 8 x 8 matrix
constexpr int kLineChunks = 8;    // chunks that the 32 banks serve at once
constexpr int kDepthBytes = 64;   // of a tile along its depth
constexpr int kFragmentWidth = 16;  // rows of A, or columns of B, in a fragment

// Depth that one fragment covers: one mma.m16n8k16 of 16-bit numbers, one m16n8k8 of wider ones.
template <class T>
inline constexpr int kFragmentDepth = sizeof(T) == 2 ? 16 : 8;

// Whether fragments are read by ldmatrix, which moves 4-byte pieces of 16-byte rows and, for what
// is transposed on the way, 2-byte pieces.
template <class T, Major kMajor>
inline constexpr bool kByLdmatrix = sizeof(T) == 2 || (sizeof(T) == 4 && kMajor == Major::kDepth);

// The tile of one operand, kWidth x 64 bytes of depth, in shared memory.
//
// Lines have no padding; a line's chunks are permuted instead (xor), by an amount that depends on
// the line, so that neither writing 8 chunks of a line nor reading a fragment meets a bank twice.
// One access of ldmatrix reads one chunk from each of 8 lines. Where fragments are read number by
// number, a quarter of the lanes (k % 4) times 8 numbers (w % 8) share an access: with 4-byte
// numbers these are 2 neighbouring chunks from each of 4 lines, with 8-byte ones, of which half a
// warp's are read at once, too. Hence kGroup, the chunks that stay together.
template <class T, Major kMajor, int kTileWidth>
struct TileMap {
  static constexpr int kPerChunk = kChunkBytes / static_cast<int>(sizeof(T));
  static constexpr int kDepth = kDepthBytes / static_cast<int>(sizeof(T));
  static constexpr int kLines = kMajor == Major::kDepth ? kTileWidth : kDepth;
  static constexpr int kAlong = kMajor == Major::kDepth ? kDepth : kTileWidth;  // numbers in a line
  static constexpr int kChunks = kAlong / kPerChunk;                            // chunks in a line
  static constexpr int kBytes = kTileWidth * kDepthBytes;

  static constexpr int kGroup = kByLdmatrix<T, kMajor> ? 1 : 2;
  static constexpr int kLinesPerRow = kChunks < kLineChunks ? kLineChunks / kChunks : 1;
  static constexpr int kPositions = (kChunks < kLineChunks ? kChunks : kLineChunks) / kGroup;

  // Where the chunk of a line lies, in chunks from the tile's begin.
  static constexpr MATCALC_HD int chunk(int line, int chunk) {
    return line * kChunks + (chunk ^ (line / kLinesPerRow % kPositions * kGroup));
  }
  // Where the number w, k lies, in numbers.
  static constexpr MATCALC_HD int number(int w, int k) {
    const int line = kMajor == Major::kDepth ? w : k, along = kMajor == Major::kDepth ? k : w;
    return chunk(line, along / kPerChunk) * kPerChunk + along % kPerChunk;
  }

  // The chunk whose address a lane gives to ldmatrix (x4) for the fragment at w, k. Lanes 0-7 give
  // the rows of the first 8 x 8 matrix: width 0-7, depth 0-7; lanes 8-15 those of width 8-15;
  // 16-31 the same of the second half of the depth. Stored along the width, the matrices have their
  // rows along it and are transposed by the load.
  static constexpr MATCALC_HD int fragment_chunk(int w, int k, int lane) {
    if (kMajor == Major::kDepth) return chunk(w + lane % 16, k / kPerChunk + lane / 16);
    return chunk(k + lane % 8 + lane / 16 * 8, w / kPerChunk + lane / 8 % 2);
  }
};

// A fragment is four registers in each lane. With 4- and 8-byte numbers register r holds the number
//   w = lane / 4 + 8 (r % 2),  k = lane % 4 + 4 (r / 2)
// and with 16-bit ones the pair at k = 2 (lane % 4) + 8 (r / 2). This is A of an mma; of B, eight
// columns wide, registers 0 and 2 are the columns 0-7 and registers 1 and 3 the columns 8-15.
constexpr MATCALC_HD int fragment_w(int lane, int r) { return lane / 4 + r % 2 * 8; }
constexpr MATCALC_HD int fragment_k(int lane, int r) { return lane % 4 + r / 2 * 4; }

// The four sums of a lane in a 16 x 8 piece of C.
constexpr MATCALC_HD int sum_row(int lane, int r) { return lane / 4 + r / 2 * 8; }
constexpr MATCALC_HD int sum_col(int lane, int r) { return lane % 4 * 2 + r % 2; }

// Which number of the tile a thread loads in pass `index` / threads, when it loads them one by one.
struct Position {
  int w, k;
};
// Consecutive lanes take consecutive numbers of a line.
template <class Map, Major kMajor>
constexpr MATCALC_HD Position along_lines(int index) {
  const int line = index / Map::kAlong, along = index % Map::kAlong;
  return kMajor == Major::kDepth ? Position{line, along} : Position{along, line};
}
// A warp takes 8 of the width and 4 of the depth: what is read from a matrix and from its transpose
// then lies in few lines of memory both times.
template <class Map>
constexpr MATCALC_HD Position in_squares(int index) {
  const int square = index / 32, lane = index % 32;
  constexpr int kAcross = Map::kDepth / 4;
  return {square / kAcross * 8 + lane / 4, square % kAcross * 4 + lane % 4};
}

// The order of the tiles of C: down kOrderRows rows of tiles, then on by a column, so that the
// blocks that run at the same time share rows of A and columns of B in L2.
constexpr uint32_t kOrderRows = 8;
struct TileOfC {
  uint32_t m, n;
};
constexpr MATCALC_HD TileOfC tile_in_order(uint32_t index, uint32_t tiles_m, uint32_t tiles_n) {
  const uint32_t group = index / (kOrderRows * tiles_n), first = group * kOrderRows;
  const uint32_t left = tiles_m - first, rows = left < kOrderRows ? left : kOrderRows;
  const uint32_t within = index - first * tiles_n;
  return {first + within % rows, within / rows};
}

}  // namespace matcalc::cuda
