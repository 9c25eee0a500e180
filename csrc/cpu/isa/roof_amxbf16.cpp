// The limit of AMX: products of tiles of bfloat16 numbers.
#if defined(__x86_64__)
#include "amx_tiles.h"
#include "roof_kernels.h"

namespace matcalc::cpu {
namespace {

constexpr int kProducts = 4;  // of a step, two by two as in the gemm
constexpr int64_t kFlops = int64_t{kProducts} * 2 * kSide * kSide * 2 * kSide;

double tile_products(int64_t steps) {
  alignas(64) uint32_t half[kSide * kSide];
  alignas(64) float sums[kSide * kSide];
  for (uint32_t& pair : half) pair = 0x3f003f00;  // 0.5 and 0.5
  written_before_tiles();
  begin_tiles();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  _tile_loadd(4, half, 64);
  _tile_loadd(5, half, 64);
  _tile_loadd(6, half, 64);
  _tile_loadd(7, half, 64);
  for (int64_t step = 0; step < steps; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_stored(0, sums, 64);
  end_tiles();
  return sums[0];
}

constexpr RoofArithmetic kTiles = {kFlops, tile_products};

}  // namespace

const RoofArithmetic& roof_tiles_amxbf16() { return kTiles; }

}  // namespace matcalc::cpu
#endif
