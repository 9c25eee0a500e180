// Where everything lies in the warpgroup gemm of wgmma.cuh: an operand's tile in shared memory and
// how the tensor cores are told of it, the sums in the registers, the tiles of C in their order.
// Plain arithmetic. The operands' sides are called width and depth, as in mma_maps.h.
#pragma once

#include <cstdint>

#include "mma_maps.h"

namespace matcalc::cuda {

constexpr int kWarpgroup = 128;  // threads; they multiply together
constexpr int kWgmmaRows = 64;   // rows of C that one warpgroup multiplies
constexpr int kWgmmaDepth = 16;  // depth of one instruction, with numbers of 16 bits

// Shared memory is filled in lines of 128 bytes, the longest that a swizzled copy makes; hence the
// depth of a stage, and the width of a slab of what is stored along its width.
constexpr int kSwizzleLine = 128;
constexpr int kStageDepth = kSwizzleLine / 2;
constexpr int kSlabWidth = kSwizzleLine / 2;

// The swizzle permutes the 16-byte chunks of a line by the line's number modulo 8, so that the
// same chunk of 8 lines lies in all 32 banks. It looks at addresses, not at offsets in a tile: the
// two agree where a tile begins at a multiple of 8 lines.
constexpr int kSwizzleBytes = 8 * kSwizzleLine;
constexpr MATCALC_HD uint32_t swizzled(uint32_t address) {
  return address ^ (address >> 7 & 7) << 4;
}

// How the tensor cores are told where an operand lies, 64 bits: the address of its first number,
// the two distances below, and in the uppermost two bits the kind of swizzle, 1 for 128 bytes.
// Addresses and distances are in units of 16 bytes, 14 bits each. The address may point into a
// line, since the swizzle looks at the sum; bits 49-51 tell where the pattern begins, 0 for a
// multiple of kSwizzleBytes.
constexpr MATCALC_HD uint64_t matrix_descriptor(uint32_t address, uint32_t leading,
                                                uint32_t stride) {
  const auto field = [](uint32_t bytes) { return static_cast<uint64_t>((bytes & 0x3ffff) >> 4); };
  return field(address) | field(leading) << 16 | field(stride) << 32 | uint64_t{1} << 62;
}

// The tile of one operand, kWidth x 64 of depth.
//
// Stored along the depth: a line for each position of the width. Stored along the width: slabs 64
// wide, in each a line for each position of the depth. A box is what one copy brings.
template <Major kMajor, int kWidth>
struct WgmmaTile {
  static constexpr bool kAlongDepth = kMajor == Major::kDepth;
  static constexpr int kBytes = kWidth * kSwizzleLine;
  static constexpr int kBoxLines = kAlongDepth ? kWidth : kStageDepth;
  static constexpr int kBoxBytes = kBoxLines * kSwizzleLine;
  static constexpr int kBoxes = kBytes / kBoxBytes;
  static_assert(kBoxLines <= 256, "the longest side of a box");

  // The instruction's flag: 0 for what is stored along the depth, 1 for the other.
  static constexpr int kTransposed = kAlongDepth ? 0 : 1;

  // Where the number w, k lies before the swizzle, in bytes from the tile's begin.
  static constexpr MATCALC_HD uint32_t byte(int w, int k) {
    return static_cast<uint32_t>(kAlongDepth ? w * kSwizzleLine + k * 2
                                             : w / kSlabWidth * kBoxBytes + k * kSwizzleLine +
                                                   w % kSlabWidth * 2);
  }

  // The operand of an instruction that begins at w, a multiple of 64, and k, a multiple of 16, of
  // the tile at this address. Along the depth, the stride leads from 8 lines to the next 8, and
  // nothing reads the leading distance, which is then one unit. Along the width, the leading
  // distance leads from a slab to the next, and the stride from 8 lines to the next 8.
  static constexpr MATCALC_HD uint64_t descriptor(uint32_t tile, int w, int k) {
    return matrix_descriptor(tile + byte(w, k), kAlongDepth ? 16 : kBoxBytes, kSwizzleBytes);
  }

  // What to add to a descriptor to come from k to k + step, within a slab or line.
  static constexpr MATCALC_HD uint32_t descriptor_step(int step) { return byte(0, step) / 16; }
};

// The sums of a thread of a warpgroup: number i of its registers in the 64 rows. Each warp has 16
// of them, in pieces 8 columns wide as with mma.m16n8.
constexpr MATCALC_HD int wgmma_sum_row(int thread, int i) {
  return thread / 32 * 16 + sum_row(thread % 32, i % 4);
}
constexpr MATCALC_HD int wgmma_sum_col(int thread, int i) {
  return i / 4 * 8 + sum_col(thread % 32, i % 4);
}

// One block's work: a tile of C of one item and, of the depth, the stages [first, last) of one
// split.
struct WgmmaWork {
  uint32_t position;  // split * items + item
  uint32_t item;
  uint32_t m, n;  // of the tile, in tiles
  uint32_t first, last;
};

// The order of the work: item by item; in an item, down kRows rows of tiles and then on by a
// column. The 132 blocks of an H100 then read 16 tiles of A and 8 or 9 of B at a time, which are
// 2048 rows and about as many columns where a tile is 128 x 256: as square as can be, so that L2
// gives each number to as many blocks as can be.
struct WgmmaSchedule {
  static constexpr uint32_t kRows = 16;
  uint32_t tiles_m, tiles_n, items, splits;
  uint32_t stages;        // of the whole depth
  uint32_t split_stages;  // of each split, fewer in the last

  constexpr MATCALC_HD uint32_t count() const { return tiles_m * tiles_n * items * splits; }

  constexpr MATCALC_HD WgmmaWork at(uint32_t index) const {
    const uint32_t tiles = tiles_m * tiles_n;
    WgmmaWork work{};
    work.position = index / tiles;
    uint32_t rest = index - work.position * tiles;
    const uint32_t first_row = rest / (kRows * tiles_n) * kRows;
    const uint32_t left = tiles_m - first_row, rows = left < kRows ? left : kRows;
    rest -= first_row * tiles_n;
    work.n = rest / rows;
    work.m = first_row + rest - work.n * rows;
    const uint32_t split = work.position / items;
    work.item = work.position - split * items;
    work.first = split * split_stages;
    work.last = stages - work.first < split_stages ? stages : work.first + split_stages;
    return work;
  }
};

}  // namespace matcalc::cuda
