// runtime.h by torch's C functions: its streams, its guard, its allocator.
#include "runtime.h"

#include <atomic>
#include <mutex>
#include <stdexcept>
#include <string>

#include <torch/csrc/stable/c/shim.h>

namespace matcalc::cuda {
namespace {

std::atomic<bool (*)()> tf32_query{nullptr};

void check(const char* what, cudaError_t error) {
  if (error == cudaSuccess) return;
  cudaGetLastError();  // this is its report: nobody else is to find it
  throw std::runtime_error(std::string("matcalc_ext: ") + what + ": " + cudaGetErrorString(error));
}

void check(const char* what, AOTITorchError error) {
  if (error == AOTI_TORCH_SUCCESS) return;
  throw std::runtime_error(std::string("matcalc_ext: torch could not ") + what);
}

// Asked once per device: a property costs microseconds, a kernel's launch no more than two.
const Limits& limits_of(int32_t index) {
  constexpr int kMaxDevices = 128;
  static std::once_flag known[kMaxDevices];
  static Limits limits[kMaxDevices];
  if (index < 0 || index >= kMaxDevices) {
    throw std::runtime_error("matcalc_ext: there is no CUDA device " + std::to_string(index));
  }
  std::call_once(known[index], [index] {
    const auto attribute = [index](cudaDeviceAttr which) {
      int value = 0;
      check("a property of the device could not be read",
            cudaDeviceGetAttribute(&value, which, index));
      return value;
    };
    limits[index] = {attribute(cudaDevAttrComputeCapabilityMajor),
                     attribute(cudaDevAttrComputeCapabilityMinor),
                     attribute(cudaDevAttrMultiProcessorCount),
                     static_cast<size_t>(attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin)),
                     static_cast<size_t>(attribute(cudaDevAttrL2CacheSize))};
  });
  return limits[index];
}

}  // namespace

Device::Device(int32_t index) : index_(index), stream_(nullptr), guard_(nullptr) {
  limits_ = &limits_of(index);
  CUDAGuardHandle guard = nullptr;
  check("make a device current", aoti_torch_create_cuda_guard(index, &guard));
  guard_ = guard;
  void* stream = nullptr;
  try {
    // The guard leaves a thread alone whose device is this one by default and has no context yet.
    // The driver's functions, of which the tensor maps' is one, fail there.
    check("a device could not be made current", cudaSetDevice(index));
    check("name its current stream", aoti_torch_get_current_cuda_stream(index, &stream));
  } catch (...) {
    aoti_torch_delete_cuda_guard(guard);
    throw;
  }
  stream_ = static_cast<cudaStream_t>(stream);
}

Device::~Device() { aoti_torch_delete_cuda_guard(static_cast<CUDAGuardHandle>(guard_)); }

Workspace::Workspace(const Device& device) : device_(device) {}

Workspace::~Workspace() {
  for (void* owner : taken_) aoti_torch_delete_tensor_object(static_cast<AtenTensorHandle>(owner));
}

// A tensor of bytes: the allocator's own functions are not in every torch that we run on.
void* Workspace::take(size_t bytes) {
  if (bytes == 0) return nullptr;
  taken_.reserve(taken_.size() + 1);  // so that nothing fails once the memory is there
  const int64_t size = static_cast<int64_t>(bytes), stride = 1;
  AtenTensorHandle owner = nullptr;
  if (aoti_torch_empty_strided(1, &size, &stride, aoti_torch_dtype_uint8(),
                               aoti_torch_device_type_cuda(), device_.index(),
                               &owner) != AOTI_TORCH_SUCCESS) {
    throw std::runtime_error("matcalc_ext: not enough CUDA memory for " + std::to_string(bytes) +
                             " bytes of working memory");
  }
  taken_.push_back(owner);
  void* memory = nullptr;
  check("give working memory", torch_get_mutable_data_ptr(owner, &memory));
  return memory;
}

bool tf32_allowed() {
  bool (*query)() = tf32_query.load();
  return query != nullptr && query();
}

void set_tf32_query(bool (*query)()) { tf32_query.store(query); }

}  // namespace matcalc::cuda
