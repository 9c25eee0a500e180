#include "device.h"

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

namespace matcalc {
namespace {

#if defined(MATCALC_CUDA)
const Kernels kCudaKernels = {cuda::contract, cuda::form, nullptr, nullptr, false};
#endif
#if defined(MATCALC_CUDA_EMULATION)  // a build for the tests: CUDA's kernels on tensors of the CPU
const Kernels& kCpuKernels = kCudaKernels;
#else
const Kernels kCpuKernels = {cpu::contract, cpu::form, cpu::prepare_result, cpu::tiles, true};
#endif

}  // namespace

const Kernels* find_kernels(int32_t device_type) {
  static const int32_t cpu = aoti_torch_device_type_cpu();
  if (device_type == cpu) return &kCpuKernels;
#if defined(MATCALC_CUDA)
  static const int32_t cuda = aoti_torch_device_type_cuda();
  if (device_type == cuda) return &kCudaKernels;
#endif
  return nullptr;
}

}  // namespace matcalc
