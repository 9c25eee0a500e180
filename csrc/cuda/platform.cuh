// What the kernels are written in: CUDA, or the emulation of it on the host with which the tests
// run the same sources as ordinary C++ (tests/emulation).
#pragma once

#if defined(MATCALC_CUDA_EMULATION)
#include "cuda_emulation.h"
#else
#include <cuda_runtime.h>

namespace matcalc::cuda {

// The block's shared memory as a T, a plain struct. Its size is given at the launch.
template <class T>
__device__ inline T& shared_memory() {
  extern __shared__ __align__(1024) unsigned char bytes[];
  return *reinterpret_cast<T*>(bytes);
}

}  // namespace matcalc::cuda
#endif
