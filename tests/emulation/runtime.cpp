// csrc/cuda/runtime.h on the host: a pretended device, and working memory that is filled with NaNs
// and looked after.
#include "../../csrc/cuda/runtime.h"

#include <cstring>
#include <new>

#include "control.h"

namespace matcalc::cuda {
namespace {

constexpr std::align_val_t kAlignment{256};
constexpr size_t kGuardBytes = 4096;

// The most shared memory that one block can ask for, from the programming guide's table.
size_t shared_per_block(int major, int minor) {
  constexpr size_t kib = 1024;
  if (major < 7) return 48 * kib;
  if (major == 7) return minor == 5 ? 64 * kib : 96 * kib;
  if (major == 8) return minor == 0 || minor == 7 ? 163 * kib : 99 * kib;
  return major < 12 ? 227 * kib : 99 * kib;
}

Limits pretended = {8, 0, 4, shared_per_block(8, 0), size_t{40} << 20};
bool (*tf32_query)() = nullptr;

}  // namespace

namespace emulation {

void set_device(int major, int minor, int multiprocessors) {
  pretended = {major, minor, multiprocessors, shared_per_block(major, minor), size_t{40} << 20};
  set_shared_limit(pretended.shared_per_block);
}

}  // namespace emulation

Device::Device(int32_t index)
    : index_(index), stream_(nullptr), limits_(&pretended), guard_(nullptr) {}
Device::~Device() = default;

Workspace::Workspace(const Device& device) : device_(device) {}

Workspace::~Workspace() {
  for (void* memory : taken_) {
    emulation::remove_guard(memory);
    operator delete(memory, kAlignment);
  }
}

void* Workspace::take(size_t bytes) {
  if (bytes == 0) return nullptr;
  taken_.reserve(taken_.size() + 1);
  void* memory = operator new(bytes + kGuardBytes, kAlignment);
  taken_.push_back(memory);
  std::memset(memory, 0xff, bytes);
  emulation::add_guard(memory, bytes, kGuardBytes);
  return memory;
}

bool tf32_allowed() { return tf32_query != nullptr && tf32_query(); }
void set_tf32_query(bool (*query)()) { tf32_query = query; }

}  // namespace matcalc::cuda
