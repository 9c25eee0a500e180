// AMX's tiles, as the kernels for it use them: all eight of 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>
#include <cstdint>

namespace matcalc::cpu {
namespace {

constexpr int kSide = 16;  // rows of a tile; pairs of bfloat16, or float32 numbers, in a row

// What LDTILECFG reads.
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileConfig kTileConfig;

// The tiles are a thread's own; released, they cost a change of threads nothing.
inline void begin_tiles() { _tile_loadconfig(&kTileConfig); }
inline void end_tiles() { _tile_release(); }

// GCC does not know that loading a tile reads memory, and may put off what is written there.
inline void written_before_tiles() { __asm__ volatile("" ::: "memory"); }

}  // namespace
}  // namespace matcalc::cpu
