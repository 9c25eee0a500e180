// Every kernel is launched here.
#pragma once

#include <cstddef>
#include <stdexcept>
#include <string>
#include <utility>

#include "runtime.h"

namespace matcalc::cuda {

constexpr int64_t kMaxGrid = INT32_MAX;       // blocks along x; kernels use no other dimension
constexpr size_t kDefaultShared = 48 * 1024;  // bytes; more has to be asked for

#if !defined(MATCALC_CUDA_EMULATION)
inline void check_launch(const char* name, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // this is its report: nobody else is to find it
  throw std::runtime_error(std::string("matcalc_ext: kernel ") + name +
                           " could not be launched: " + cudaGetErrorString(error));
}
#endif

// Launches kernel(args...), or throws an error that names it.
template <class... Params, class... Args>
void launch(const char* name, void (*kernel)(Params...), int64_t blocks, int threads,
            size_t shared_bytes, const Device& device, Args&&... args) {
  if (blocks == 0) return;
  if (blocks > kMaxGrid) {
    throw std::runtime_error(std::string("matcalc_ext: kernel ") + name + " would need " +
                             std::to_string(blocks) + " blocks, at most " +
                             std::to_string(kMaxGrid) + " can be launched");
  }
#if defined(MATCALC_CUDA_EMULATION)
  (void)device;
  emulation::run(name, blocks, threads, shared_bytes,
                 [&] { kernel(static_cast<Params>(args)...); });
#else
  if (shared_bytes > kDefaultShared) {
    check_launch(name, cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel),
                                            cudaFuncAttributeMaxDynamicSharedMemorySize,
                                            static_cast<int>(shared_bytes)));
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = shared_bytes;
  config.stream = device.stream();
  check_launch(name, cudaLaunchKernelEx(&config, kernel, std::forward<Args>(args)...));
#endif
}

}  // namespace matcalc::cuda
