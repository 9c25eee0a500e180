// AMX's tiles on any processor, by what Intel's manual says of the instructions: included before
// everything else where a kernel is compiled for the tests. What the manual leaves undefined, or
// what faults, is an error here.
#pragma once

#include <immintrin.h>
#include <cstdint>

namespace amx_emulation {

void load_config(const void* config);
void release();
void zero(int tile);
void load(int tile, const void* base, int64_t stride);
void store(int tile, void* base, int64_t stride);
void multiply_pairs(int c, int a, int b);  // TDPBF16PS

// For the tests: TDPBF16PS's since the last call, and whether this thread holds tiles.
int64_t products();
bool configured();

}  // namespace amx_emulation

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stream_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) amx_emulation::load_config(config)
#define _tile_release() amx_emulation::release()
#define _tile_zero(tile) amx_emulation::zero(tile)
#define _tile_loadd(tile, base, stride) amx_emulation::load(tile, base, stride)
#define _tile_stream_loadd(tile, base, stride) amx_emulation::load(tile, base, stride)
#define _tile_stored(tile, base, stride) amx_emulation::store(tile, base, stride)
#define _tile_dpbf16ps(c, a, b) amx_emulation::multiply_pairs(c, a, b)
