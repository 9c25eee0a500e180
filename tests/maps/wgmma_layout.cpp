// Looks at every index map of csrc/cuda/wgmma_layout.h against the PTX ISA's words for it. Prints
// what is wrong; nothing is the answer wanted.
#include "../../csrc/cuda/wgmma_layout.h"

#include <cstdio>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>

namespace matcalc::cuda {
namespace {

std::string where;

void expect(bool holds, const char* what) {
  if (!holds) std::printf("%s: %s\n", where.c_str(), what);
}

void check_swizzle() {
  where = "swizzle";
  // 16-byte chunk c of line l is chunk c ^ l % 8, in a pattern of 1024 bytes.
  for (uint32_t line = 0; line < 16; ++line) {
    for (uint32_t byte = 0; byte < 128; ++byte) {
      const uint32_t chunk = (byte / 16) ^ line % 8;
      expect(swizzled(line * 128 + byte) == line * 128 + chunk * 16 + byte % 16, "a chunk");
    }
  }
  // The sums of a warp, in pairs of 4 bytes, meet no bank twice; float32 pairs every bank twice.
  for (int cols : {64, 32}) {
    const int size = 128 / cols;
    for (int i = 0; i < cols / 2; i += 2) {
      std::map<uint32_t, int> words;  // of each bank
      for (int lane = 0; lane < 32; ++lane) {
        const int at = wgmma_sum_row(lane, i) * 128 + wgmma_sum_col(lane, i) * size;
        for (int byte = 0; byte < 2 * size; byte += 4) {
          ++words[swizzled(static_cast<uint32_t>(at + byte)) / 4 % 32];
        }
      }
      for (const auto& [bank, count] : words) {
        expect(count <= size / 2 * (size == 4 ? 2 : 1), "sums are written with conflicts");
      }
    }
  }
}

// A descriptor, read as the ISA writes it.
struct Matrix {
  uint32_t start, leading, stride;

  explicit Matrix(uint64_t descriptor)
      : start(static_cast<uint32_t>(descriptor & 0x3fff) * 16),
        leading(static_cast<uint32_t>(descriptor >> 16 & 0x3fff) * 16),
        stride(static_cast<uint32_t>(descriptor >> 32 & 0x3fff) * 16) {
    expect(descriptor >> 62 == 1, "the swizzle is of another kind");
    expect((descriptor >> 46 & 0xffff) == 0, "there is a base offset, or something unknown");
    expect((descriptor >> 14 & 3) == 0 && (descriptor >> 30 & 3) == 0, "a field runs over");
    expect((start >> 7 & 7) == 0, "the pattern does not begin at a multiple of 1024 bytes");
  }
  // Canonical layouts of 16-bit numbers with the 128-byte swizzle:
  // K-major ((8, m), (8, 2k)) : ((64, SBO), (1, 8)), MN-major ((8, 8, m), (8, k)) :
  // ((1, 8, LBO), (64, SBO)), in numbers.
  uint32_t address(bool transposed, int w, int k) const {
    const uint32_t uw = static_cast<uint32_t>(w), uk = static_cast<uint32_t>(k);
    const uint32_t linear =
        transposed ? start + uw % 64 * 2 + uw / 64 * leading + uk % 8 * 128 + uk / 8 * stride
                   : start + uw % 8 * 128 + uw / 8 * stride + uk * 2;
    return swizzled(linear);
  }
};

// Where the copy engine puts the number w, k: line by line, box by box.
template <class Tile>
uint32_t copied(int w, int k) {
  const int box = Tile::kAlongDepth ? 0 : w / 64;
  const int line = Tile::kAlongDepth ? w : k, along = Tile::kAlongDepth ? k : w % 64;
  return static_cast<uint32_t>(box * Tile::kBoxBytes + line * 128 + along * 2);
}

template <Major kMajor, int kWidth, int kInstruction>
void check_tile() {
  using Tile = WgmmaTile<kMajor, kWidth>;
  where = "width " + std::to_string(kWidth) + (Tile::kAlongDepth ? ", K-major" : ", MN-major");
  expect(Tile::kBoxes * Tile::kBoxBytes == Tile::kBytes && Tile::kBytes == kWidth * 64 * 2,
         "the boxes are not the tile");
  expect(Tile::kBoxBytes % kSwizzleBytes == 0, "a box begins within the pattern");
  std::set<uint32_t> places;
  for (int w = 0; w < kWidth; ++w) {
    for (int k = 0; k < 64; ++k) {
      places.insert(swizzled(Tile::byte(w, k)));
      expect(Tile::byte(w, k) == copied<Tile>(w, k), "the copy puts a number elsewhere");
    }
  }
  expect(places.size() == static_cast<size_t>(kWidth) * 64, "two numbers at one place");
  expect(*places.rbegin() == Tile::kBytes - 2, "a number is outside");

  // The last tile that shared memory of 227 KiB can hold, and one that begins it.
  for (uint32_t tile : {0u, 1024u, (227u * 1024 - Tile::kBytes) / 1024 * 1024}) {
    for (int w = 0; w < kWidth; w += kInstruction) {
      const uint64_t first = Tile::descriptor(tile, w, 0);
      for (int k = 0; k < 64; k += kWgmmaDepth) {
        const uint64_t descriptor = Tile::descriptor(tile, w, k);
        expect(descriptor == first + Tile::descriptor_step(k), "the step along the depth");
        const Matrix matrix(descriptor);
        for (int i = 0; i < kInstruction; ++i) {
          for (int j = 0; j < kWgmmaDepth; ++j) {
            expect(matrix.address(Tile::kTransposed == 1, i, j) ==
                       swizzled(tile + Tile::byte(w + i, k + j)),
                   "an instruction reads another number");
          }
        }
      }
    }
  }
}

void check_sums() {
  where = "sums";
  std::set<std::pair<int, int>> places;
  for (int thread = 0; thread < kWarpgroup; ++thread) {
    for (int i = 0; i < 128; ++i) {
      const int row = wgmma_sum_row(thread, i), col = wgmma_sum_col(thread, i);
      expect(row == thread / 32 * 16 + thread % 32 / 4 + i / 2 % 2 * 8, "a row");
      expect(col == i / 4 * 8 + thread % 4 * 2 + i % 2, "a column");
      places.emplace(row, col);
    }
  }
  expect(places.size() == 64 * 256 && places.rbegin()->first == 63, "not every number once");
}

void check_schedule(const WgmmaSchedule& schedule) {
  where = "schedule of " + std::to_string(schedule.tiles_m) + " x " +
          std::to_string(schedule.tiles_n) + " tiles, " + std::to_string(schedule.items) +
          " items, " + std::to_string(schedule.splits) + " splits";
  std::map<std::tuple<uint32_t, uint32_t, uint32_t>, std::set<uint32_t>> stages;
  std::set<std::tuple<uint32_t, uint32_t, uint32_t>> outputs;
  for (uint32_t index = 0; index < schedule.count(); ++index) {
    const WgmmaWork work = schedule.at(index);
    expect(work.m < schedule.tiles_m && work.n < schedule.tiles_n && work.item < schedule.items,
           "a tile is outside");
    expect(work.position % schedule.items == work.item, "the position is of another item");
    expect(work.first < work.last, "there is nothing to do");
    outputs.insert({work.position, work.m, work.n});
    for (uint32_t stage = work.first; stage < work.last; ++stage) {
      expect(stages[{work.item, work.m, work.n}].insert(stage).second, "a stage comes twice");
    }
  }
  expect(outputs.size() == schedule.count(), "a tile comes twice");
  expect(stages.size() == schedule.count() / schedule.splits, "a tile does not come");
  for (const auto& [tile, of_tile] : stages) {
    expect(of_tile.size() == schedule.stages && *of_tile.rbegin() == schedule.stages - 1,
           "a stage does not come");
  }
  // What runs at the same time lies in few rows and columns of tiles.
  for (uint32_t begin = 0; begin + 132 <= schedule.count(); begin += 132) {
    if (schedule.tiles_m < 16 || schedule.tiles_m % 16 != 0 || schedule.tiles_n < 20) break;
    std::set<uint32_t> rows, cols;
    for (uint32_t index = begin; index < begin + 132; ++index) {
      rows.insert(schedule.at(index).m);
      cols.insert(schedule.at(index).n);
    }
    if (rows.size() > 16) continue;  // where one group of rows ends and the next begins
    expect(cols.size() <= 10, "the blocks of a moment read too many columns");
  }
}

void check() {
  check_swizzle();
  check_tile<Major::kDepth, 128, 64>();  // A
  check_tile<Major::kWidth, 128, 64>();
  check_tile<Major::kDepth, 128, 128>();  // B
  check_tile<Major::kWidth, 128, 128>();
  check_tile<Major::kDepth, 256, 256>();
  check_tile<Major::kWidth, 256, 256>();
  check_sums();
  check_schedule({1, 1, 1, 1, 1, 1});
  check_schedule({3, 5, 2, 1, 7, 7});
  check_schedule({15, 2, 1, 1, 2, 2});
  check_schedule({16, 3, 3, 4, 37, 10});
  check_schedule({17, 4, 1, 3, 9, 3});
  check_schedule({32, 21, 1, 1, 4, 4});
  check_schedule({33, 1, 5, 2, 33, 17});
}

}  // namespace
}  // namespace matcalc::cuda

int main() { matcalc::cuda::check(); }
