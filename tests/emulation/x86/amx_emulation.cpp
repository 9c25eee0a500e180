#include "amx_emulation.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

#include "avx512_emulation.h"

namespace amx_emulation {
namespace {

using avx512_emulation::flushed;

struct Config {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

struct Tiles {
  bool configured = false;
  Config config = {};
  bool written[8] = {};
  alignas(64) uint8_t bytes[8][16][64] = {};
};

thread_local Tiles tiles;
int64_t counted = 0;

void expect(bool condition, const std::string& what) {
  if (!condition) throw std::logic_error("AMX: " + what);
}

void expect_tile(int tile, bool written) {
  expect(tiles.configured, "a tile is used before LDTILECFG");
  expect(tile >= 0 && tile < 8, "there are eight tiles");
  expect(!written || tiles.written[tile], "tile " + std::to_string(tile) + " is read first");
}

float number(int tile, int row, int index) {
  uint16_t bits;
  std::memcpy(&bits, &tiles.bytes[tile][row][2 * index], sizeof bits);
  return avx512_emulation::from_bfloat16(bits);
}

}  // namespace

int64_t products() { return std::exchange(counted, 0); }

bool configured() { return tiles.configured; }

void load_config(const void* config) {
  tiles = {};
  std::memcpy(&tiles.config, config, sizeof(Config));
  expect(tiles.config.palette == 1, "palette 1 is the one with tiles");
  for (int i = 0; i < 8; ++i) {
    expect(tiles.config.rows[i] <= 16 && tiles.config.row_bytes[i] <= 64, "a tile is too large");
    expect(tiles.config.rows[i + 8] == 0 && tiles.config.row_bytes[i + 8] == 0, "only 8 tiles");
  }
  for (uint8_t byte : tiles.config.reserved) expect(byte == 0, "reserved bytes are zero");
  tiles.configured = true;
}

void release() { tiles = {}; }

void zero(int tile) {
  expect_tile(tile, false);
  std::memset(tiles.bytes[tile], 0, sizeof tiles.bytes[tile]);
  tiles.written[tile] = true;
}

void load(int tile, const void* base, int64_t stride) {
  zero(tile);
  for (int row = 0; row < tiles.config.rows[tile]; ++row) {
    std::memcpy(tiles.bytes[tile][row], static_cast<const char*>(base) + row * stride,
                tiles.config.row_bytes[tile]);
  }
}

void store(int tile, void* base, int64_t stride) {
  expect_tile(tile, true);
  for (int row = 0; row < tiles.config.rows[tile]; ++row) {
    std::memcpy(static_cast<char*>(base) + row * stride, tiles.bytes[tile][row],
                tiles.config.row_bytes[tile]);
  }
}

// Even and odd terms are summed apart, each rounded once a term, then together onto c.
void multiply_pairs(int c, int a, int b) {
  for (int tile : {c, a, b}) expect_tile(tile, true);
  const Config& config = tiles.config;
  expect(config.rows[a] == config.rows[c] && config.row_bytes[b] == config.row_bytes[c] &&
             config.row_bytes[a] == 4 * config.rows[b],
         "the sizes of the tiles do not fit");
  for (int m = 0; m < config.rows[c]; ++m) {
    for (int n = 0; n < config.row_bytes[c] / 4; ++n) {
      float even = 0, odd = 0;
      for (int k = 0; k < config.rows[b]; ++k) {
        even = flushed(std::fma(number(a, m, 2 * k), number(b, k, 2 * n), even));
        odd = flushed(std::fma(number(a, m, 2 * k + 1), number(b, k, 2 * n + 1), odd));
      }
      float sum;
      std::memcpy(&sum, &tiles.bytes[c][m][4 * n], sizeof sum);
      sum = flushed(flushed(sum) + flushed(even + odd));
      std::memcpy(&tiles.bytes[c][m][4 * n], &sum, sizeof sum);
    }
  }
  ++counted;
}

}  // namespace amx_emulation
