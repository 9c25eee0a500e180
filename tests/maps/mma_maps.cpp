// Looks at every index map of csrc/cuda/mma_maps.h: each number has one place, and no access to
// shared memory meets a bank twice. Prints what is wrong; nothing is the answer wanted.
#include "../../csrc/cuda/mma_maps.h"

#include <cstdio>
#include <set>
#include <string>
#include <vector>

namespace matcalc::cuda {
namespace {

std::string where;

void expect(bool holds, const char* what) {
  if (!holds) std::printf("%s: %s\n", where.c_str(), what);
}

// Lanes that access `size` bytes each at these bytes: of a warp, as many at a time as make 128
// bytes. Words of 4 bytes are in 32 banks; the same word may be asked for by several lanes.
bool in_different_banks(const std::vector<int>& bytes, int size) {
  const size_t at_once = size <= 4 ? 32 : 128 / static_cast<size_t>(size);
  for (size_t begin = 0; begin < bytes.size(); begin += at_once) {
    std::vector<std::set<int>> words(32);
    for (size_t lane = begin; lane < begin + at_once && lane < bytes.size(); ++lane) {
      for (int byte = 0; byte < size; byte += size < 4 ? size : 4) {
        const int word = (bytes[lane] + byte) / 4;
        words[static_cast<size_t>(word % 32)].insert(word);
      }
    }
    for (const std::set<int>& in_bank : words) {
      if (in_bank.size() > 1) return false;
    }
  }
  return true;
}

// first(thread) + step(pass) takes every number (or chunk) of the tile once, to the byte that
// byte_step says, and every warp's store is without conflicts.
template <class T, class Map, Major kMajor, class Lanes, class First>
void check_lanes(const First& first, int threads, int numbers, int width, const char* what) {
  const int size = static_cast<int>(sizeof(T));
  std::set<int> taken;
  for (int pass = 0; pass < Lanes::kPasses; ++pass) {
    const Position step = Lanes::step(pass);
    const ByteStep bytes = byte_step<Map, kMajor>(step);
    std::vector<int> stored;
    for (int thread = 0; thread < threads; ++thread) {
      const Position from = first(thread);
      const int w = from.w + step.w, k = from.k + step.k;
      expect(w >= 0 && w < width && k >= 0 && k < Map::kDepth, what);
      const int byte = Map::number(w, k) * size;
      expect(((Map::number(from.w, from.k) * size) ^ bytes.flip) + bytes.add == byte, what);
      taken.insert(byte);
      stored.push_back(byte);
      if (thread % 32 == 31) {
        expect(in_different_banks(stored, size * numbers), what);
        stored.clear();
      }
    }
  }
  expect(static_cast<int>(taken.size()) * numbers == width * Map::kDepth, what);
}

template <class T, Major kMajor, int kWidth, int kThreads>
void check_tile() {
  using Map = TileMap<T, kMajor, kWidth>;
  const int size = static_cast<int>(sizeof(T));
  where = "tile of " + std::to_string(size) + " bytes, width " + std::to_string(kWidth) +
          (kMajor == Major::kDepth ? ", along the depth, " : ", along the width, ") +
          std::to_string(kThreads) + " threads";

  std::set<int> places;
  for (int w = 0; w < kWidth; ++w) {
    for (int k = 0; k < Map::kDepth; ++k) {
      const int place = Map::number(w, k);
      expect(place >= 0 && place * size < Map::kBytes, "a number is outside");
      places.insert(place);
    }
  }
  expect(static_cast<int>(places.size()) == kWidth * Map::kDepth, "two numbers at one place");

  using Numbers = NumberLanes<Map, kMajor, kThreads>;
  using Chunks = ChunkLanes<Map, kMajor, kThreads>;
  check_lanes<T, Map, kMajor, Numbers>(Numbers::first, kThreads, 1, kWidth, "one by one");
  check_lanes<T, Map, kMajor, Chunks>(Chunks::first, kThreads, Map::kPerChunk, kWidth, "chunks");
  if (kMajor == Major::kDepth && size > 2) {
    check_lanes<T, Map, kMajor, Numbers>(Numbers::first_in_square, kThreads, 1, kWidth, "squares");
  }

  for (const Side side : {Side::kA, Side::kB}) {
    for (int w = 0; w < kWidth; w += kFragmentWidth) {
      for (int k = 0; k < Map::kDepth; k += kFragmentDepth<T>) {
        std::set<int> read;
        for (int r = 0; r < 4; ++r) {
          std::vector<int> bytes;
          for (int i = 0; i < (kByLdmatrix<T, kMajor> ? 8 : 32); ++i) {
            if (kByLdmatrix<T, kMajor>) {  // the row i of matrix r
              bytes.push_back(Map::fragment_chunk(side, w, k, r * 8 + i) * kChunkBytes);
            } else {
              bytes.push_back(size *
                              Map::number(w + fragment_w(side, i, r), k + fragment_k(side, i, r)));
            }
          }
          expect(in_different_banks(bytes, kByLdmatrix<T, kMajor> ? kChunkBytes : size),
                 "a fragment is read with conflicts");
          read.insert(bytes.begin(), bytes.end());
        }
        // Four registers of different numbers, all of them the fragment's.
        std::set<int> wanted;
        const int pieces = kByLdmatrix<T, kMajor> ? Map::kPerChunk : 1;
        for (int i = 0; i < kFragmentWidth; ++i) {
          for (int j = 0; j < kFragmentDepth<T>; ++j) {
            wanted.insert(Map::number(w + i, k + j) / pieces * pieces * size);
          }
        }
        expect(read == wanted, "a fragment is of other numbers");
      }
    }
  }
}

template <class T>
void check_type() {
  check_tile<T, Major::kDepth, 64, 128>();
  check_tile<T, Major::kWidth, 64, 128>();
  check_tile<T, Major::kDepth, 128, 128>();
  check_tile<T, Major::kWidth, 128, 128>();
  check_tile<T, Major::kDepth, 128, 256>();
  check_tile<T, Major::kWidth, 128, 256>();
  check_tile<T, Major::kDepth, 256, 256>();
  check_tile<T, Major::kWidth, 256, 256>();
}

void check_fragments() {
  where = "fragments";
  for (const Side side : {Side::kA, Side::kB}) {
    std::set<int> numbers;
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 4; ++r) {
        numbers.insert(fragment_w(side, lane, r) * 8 + fragment_k(side, lane, r));
      }
    }
    expect(numbers.size() == 16 * 8 && *numbers.rbegin() == 16 * 8 - 1, "16 x 8 numbers");
  }
  // Of one mma A takes all of the width with each half of the depth; B eight of it.
  for (int r = 0; r < 4; ++r) {
    expect(width_half(Side::kA, r) == r % 2 && depth_half(Side::kA, r) == r / 2, "A's registers");
    expect(width_half(Side::kB, r) == r / 2 && depth_half(Side::kB, r) == r % 2, "B's registers");
  }
  std::set<int> sums;
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) sums.insert(sum_row(lane, r) * 8 + sum_col(lane, r));
  }
  expect(sums.size() == 16 * 8 && *sums.rbegin() == 16 * 8 - 1, "16 x 8 sums");
}

// A warp turns 16 rows of `cols` sums of `size` bytes.
void check_turning(int cols, int size) {
  where = "turning rows of " + std::to_string(cols) + " numbers of " + std::to_string(size);
  const int row = turn_row(cols);
  expect(row * size % kChunkBytes == 0, "rows are not aligned");
  for (int r = 0; r < 4; r += 2) {
    std::vector<int> written;
    for (int lane = 0; lane < 32; ++lane) {
      written.push_back((sum_row(lane, r) * row + sum_col(lane, r)) * size);
    }
    expect(in_different_banks(written, 2 * size), "written with conflicts");
  }
  const int quad = kChunkBytes / size, lanes = cols / quad;
  std::vector<int> read;
  for (int lane = 0; lane < 32; ++lane) {
    read.push_back((lane / lanes * row + lane % lanes * quad) * size);
  }
  expect(in_different_banks(read, kChunkBytes), "read with conflicts");
}

void check_order(uint32_t tiles_m, uint32_t tiles_n) {
  where = "order of " + std::to_string(tiles_m) + " x " + std::to_string(tiles_n) + " tiles";
  std::set<uint64_t> seen;
  for (uint32_t index = 0; index < tiles_m * tiles_n; ++index) {
    const TileOfC tile = tile_in_order(index, tiles_m, tiles_n);
    expect(tile.m < tiles_m && tile.n < tiles_n, "a tile is outside");
    seen.insert(static_cast<uint64_t>(tile.m) << 32 | tile.n);
    const uint32_t first = index / (kOrderRows * tiles_n) * kOrderRows;
    expect(tile.m >= first && tile.m < first + kOrderRows, "a tile is of another group of rows");
  }
  expect(seen.size() == tiles_m * tiles_n, "a tile comes twice");
}

}  // namespace
}  // namespace matcalc::cuda

int main() {
  using namespace matcalc::cuda;
  check_type<uint16_t>();
  check_type<float>();
  check_type<double>();
  check_fragments();
  for (const int cols : {32, 64}) check_turning(cols, 4);
  check_turning(32, 8);
  for (const uint32_t m : {1u, 7u, 8u, 9u, 16u, 37u}) {
    for (const uint32_t n : {1u, 2u, 8u, 13u}) check_order(m, n);
  }
  // Grids as large as they can be.
  where = "order of the largest grids";
  const uint32_t most = 0x7fffffff;
  expect(tile_in_order(most - 1, 1, most).n == most - 1, "one row");
  expect(tile_in_order(most - 1, most, 1).m == most - 1, "one column");
  return 0;
}
