// Loops over torch's own thread pool, through the C functions of its stable ABI. No pool of ours:
// torch.set_num_threads holds for these kernels as for any other op.
#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <memory>
#include <stdexcept>
#include <type_traits>

#include <torch/csrc/stable/c/shim.h>

namespace matcalc::cpu {

// Multiply-adds below which the thread pool costs more than it gives (a few microseconds).
constexpr int64_t kInlineWork = 64 * 1024;
// The same in elements of a matrix that is read once (128 KiB of floats).
constexpr int64_t kGrain = 32768;

inline int num_threads() {
  uint32_t count = 1;
  if (torch_get_num_threads(&count) != AOTI_TORCH_SUCCESS) return 1;
  return count < 1 ? 1 : static_cast<int>(count);
}

// Calls f(first, last) on ranges that cover [begin, end), each of at least `grain` indices but for
// the last; on the calling thread alone when one range is enough or inside another parallel loop.
// Which thread runs a range, and how many ranges there are, is not fixed: f's results must not
// depend on it. An exception out of f is carried past the C functions and thrown again here.
template <class F>
void parallel_for(int64_t begin, int64_t end, int64_t grain, F&& f) {
  if (begin >= end) return;
  if (grain < 1) grain = 1;
  if (end - begin <= grain) {
    f(begin, end);
    return;
  }
  struct Context {
    std::remove_reference_t<F>* body;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
  } context;
  context.body = std::addressof(f);
  const ParallelFunc call = [](int64_t first, int64_t last, void* opaque) {
    Context& c = *static_cast<Context*>(opaque);
    try {
      (*c.body)(first, last);
    } catch (...) {
      // The first failure is the one reported; the loop's end orders this write before the read.
      if (!c.failed.exchange(true)) c.error = std::current_exception();
    }
  };
  const AOTITorchError status = torch_parallel_for(begin, end, grain, call, &context);
  if (context.error) std::rethrow_exception(context.error);
  if (status != AOTI_TORCH_SUCCESS) throw std::runtime_error("torch_parallel_for failed");
}

}  // namespace matcalc::cpu
