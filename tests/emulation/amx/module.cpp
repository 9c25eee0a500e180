// The emulation of AMX, and a Python module that runs the blocked product of csrc/cpu/gemm.cpp on
// the kernels for it.
#include "amx_emulation.h"

#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "../../../csrc/cpu/gemm.h"

namespace amx_emulation {
namespace {

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
int64_t products = 0;

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
  const uint32_t wide = uint32_t{bits} << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

float flushed(float value) {
  return std::fpclassify(value) == FP_SUBNORMAL ? std::copysign(0.0f, value) : value;
}

}  // namespace

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
  ++products;
}

}  // namespace amx_emulation

namespace {

using matcalc::Contraction;
using matcalc::Dtype;

// C[m0:m1, n0:n1] of (A * S) B (+ bias): bits of bfloat16 in A, S and B; float32, or bits, in C. A
// and S are of m's and k's dimensions, B of k's and n, C of m's and n; S and bias may be None.
void multiply(pybind11::array a, pybind11::array b, pybind11::array c, pybind11::object bias,
              int64_t m0, int64_t m1, int64_t n0, int64_t n1, pybind11::object s) {
  const auto step = [](const pybind11::array& array, int axis) {
    return static_cast<int64_t>(array.strides(axis) / array.itemsize());
  };
  Contraction op{};
  op.dtype = op.dtype_a = op.dtype_b = Dtype::kBFloat16;
  op.dtype_c = c.itemsize() == 4 ? Dtype::kFloat32 : Dtype::kBFloat16;
  op.a = a.data();
  op.b = b.data();
  op.c = c.mutable_data();
  op.scale = 1;
  if (!bias.is_none()) {
    const pybind11::array values = bias;
    op.bias = values.data();
    op.bias_stride = step(values, 0);
  }
  pybind11::array scale;
  if (!s.is_none()) {
    scale = s;
    op.s = scale.data();
  }
  const auto step_of_s = [&](int axis) { return op.s == nullptr ? 0 : step(scale, axis); };
  const int m_dims = static_cast<int>(c.ndim()) - 1, k_dims = static_cast<int>(b.ndim()) - 1;
  for (int d = 0; d < m_dims; ++d) {
    op.m.push({a.shape(d), step(a, d), step_of_s(d), 0, 0, step(c, d)});
  }
  for (int d = 0; d < k_dims; ++d) {
    op.k.push({b.shape(d), step(a, m_dims + d), step_of_s(m_dims + d), step(b, d), 0, 0});
  }
  op.n.push({b.shape(k_dims), 0, 0, step(b, k_dims), 0, step(c, m_dims)});
  const matcalc::cpu::Product<float, matcalc::cpu::BfPair> product(
      op, matcalc::cpu::gemm_kernels_amxbf16(), false);
  product.compute(0, m0, m1, n0, n1);
}

}  // namespace

PYBIND11_MODULE(_amx, m) {
  m.def("multiply", multiply);
  m.def(
      "products", [] { return std::exchange(amx_emulation::products, 0); },
      "Tile products since the last call.");
  m.def("configured", [] { return amx_emulation::tiles.configured; });
}
