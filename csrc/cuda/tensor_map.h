// What the copy engine of Hopper is told of an array in memory.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace matcalc::cuda {

// An array of five dimensions, the first of which is contiguous, and the box of it that one copy
// moves. A line of the box is at most 128 bytes; lines lie 128 bytes apart in shared memory, and
// their 16-byte chunks are permuted ("128-byte swizzle"). What a box has outside of the array is
// zeros when it is loaded, and is left out when it is stored.
struct TensorMapShape {
  Dtype dtype;
  const void* data;    // aligned to 16 bytes
  uint64_t size[5];    // 1 where there is no such dimension
  uint64_t stride[4];  // of the other four, in bytes: multiples of 16, less than 2^40
  uint32_t box[2];     // of the first two, at most 256; 1 of the others
};

}  // namespace matcalc::cuda
