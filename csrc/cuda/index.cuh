// From positions in a list of loop dimensions to offsets in an operand, on the device.
#pragma once

#include <cstdint>

#include "../kernels.h"
#include "../offsets.h"
#include "numbers.cuh"
#include "runtime.h"

namespace matcalc::cuda {

// Where each position of one list lies in one operand: by up to kDims merged dimensions, or, where
// more are left, by a table that a kernel has filled.
struct Offsets {
  static constexpr int kDims = 4;
  int64_t numel;
  const int64_t* table;  // [numel], or nullptr
  int32_t count;
  bool fits32;  // positions fit 32 bits, whose division is several times cheaper
  int64_t size[kDims], stride[kDims];

  // The one step between consecutive positions, or kNoStep.
  MATCALC_HD int64_t step() const {
    return table != nullptr || count > 1 ? kNoStep : count == 0 ? 0 : stride[0];
  }

  MATCALC_HD int64_t at(int64_t position) const {
    if (table != nullptr) return table[position];
    if (count <= 1) return count == 0 ? 0 : position * stride[0];
    int64_t offset = 0;
    if (fits32) {
      uint32_t rest = static_cast<uint32_t>(position);
#if defined(__CUDA_ARCH__)
#pragma unroll 1  // a division is long, and kernels decode in many places
#endif
      for (int d = count - 1; d > 0; --d) {
        const uint32_t outer = rest / static_cast<uint32_t>(size[d]);
        offset += static_cast<int64_t>(rest - outer * static_cast<uint32_t>(size[d])) * stride[d];
        rest = outer;
      }
      return offset + static_cast<int64_t>(rest) * stride[0];
    }
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
    for (int d = count - 1; d > 0; --d) {
      const int64_t outer = position / size[d];
      offset += (position - outer * size[d]) * stride[d];
      position = outer;
    }
    return offset + position * stride[0];
  }
};

// A list as the kernel that fills a table takes it.
struct StridedDims {
  int32_t count;
  int64_t size[kMaxDims], stride[kMaxDims];
};

// Merges what one stride steps through; launches the kernel that fills a table where that leaves
// more than kDims dimensions.
Offsets make_offsets(const StridedDims& dims, const Device& device, Workspace& workspace);

template <class D>
Offsets make_offsets(const DimList<D>& dims, int64_t D::* stride, const Device& device,
                     Workspace& workspace) {
  StridedDims list;
  list.count = dims.count;
  for (int i = 0; i < dims.count; ++i) {
    list.size[i] = dims[i].size;
    list.stride[i] = dims[i].*stride;
  }
  return make_offsets(list, device, workspace);
}

}  // namespace matcalc::cuda
