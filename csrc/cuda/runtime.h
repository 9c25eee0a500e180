// The device side of a call: which GPU, which stream, what it can do, and working memory. Two
// implementations: runtime.cu by torch's C functions, and the tests' on the host.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "../kernels.h"
#include "platform.cuh"

namespace matcalc::cuda {

struct Limits {
  int major, minor;  // compute capability
  int multiprocessors;
  size_t shared_per_block;  // bytes, the most a launch can ask for
  size_t l2;                // bytes

  bool at_least(int want_major, int want_minor) const {
    return major > want_major || (major == want_major && minor >= want_minor);
  }
};

// The GPU that a call runs on: current for as long as this lives.
class Device {
 public:
  explicit Device(int32_t index);
  ~Device();
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;

  int32_t index() const { return index_; }
  cudaStream_t stream() const { return stream_; }  // torch's current one on this GPU
  const Limits& limits() const { return *limits_; }

 private:
  int32_t index_;
  cudaStream_t stream_;
  const Limits* limits_;
  void* guard_;
};

// Working memory from torch's caching allocator. It goes back at the end of the scope, before the
// kernels that use it have run: what is allocated next on the same stream runs after them.
class Workspace {
 public:
  explicit Workspace(const Device& device);
  ~Workspace();
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;

  void* take(size_t bytes);  // aligned to 256 bytes

 private:
  const Device& device_;
  std::vector<void*> taken_;  // what the memory is owned by
};

// What the function given to set_tf32_query (kernels.h) says.
bool tf32_allowed();

}  // namespace matcalc::cuda
