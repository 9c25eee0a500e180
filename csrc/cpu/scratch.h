// Working memory of the drivers: one buffer per thread that only grows, so that packing costs no
// page faults after the first call.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

namespace matcalc::cpu {

class Scratch {
 public:
  // The calling thread's buffer, emptied. One driver frame at a time uses it: a frame takes all it
  // needs before it calls anything that may start another.
  static Scratch& local() {
    thread_local Scratch scratch;
    scratch.used_ = 0;
    return scratch;
  }

  // Another one, for what a frame's tasks share while each of them uses its own thread's local().
  static Scratch& shared() {
    thread_local Scratch scratch;
    scratch.used_ = 0;
    return scratch;
  }

  // Makes room for `bytes` in all; take() never moves what was taken before.
  void reserve(size_t bytes) {
    if (bytes <= capacity_) return;
    release();
    const size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
    data_ = static_cast<std::byte*>(std::aligned_alloc(kAlignment, rounded));
    if (data_ == nullptr) throw std::bad_alloc();
    capacity_ = rounded;
    held() += rounded;
  }

  // Bytes that all threads hold at the moment.
  static size_t total() { return held(); }

  template <class T>
  T* take(int64_t count) {
    T* taken = reinterpret_cast<T*>(data_ + used_);
    used_ += size_of<T>(count);
    return taken;
  }

  template <class T>
  static constexpr size_t size_of(int64_t count) {
    return (static_cast<size_t>(count) * sizeof(T) + kLine - 1) / kLine * kLine;
  }

  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { release(); }

 private:
  static constexpr size_t kLine = 64;
  static constexpr size_t kAlignment = 4096;
  Scratch() = default;

  void release() {
    std::free(data_);
    held() -= capacity_;
    data_ = nullptr;
    capacity_ = 0;
  }

  static std::atomic<size_t>& held() {
    static std::atomic<size_t> bytes{0};
    return bytes;
  }

  std::byte* data_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
};

}  // namespace matcalc::cpu
