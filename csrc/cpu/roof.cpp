#include "roof.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "dispatch.h"
#include "isa/roof_kernels.h"
#include "parallel.h"

namespace matcalc::cpu {
namespace {

constexpr int64_t kBytes = int64_t{256} << 20;  // larger than the caches
constexpr int kRounds = 8;
constexpr double kSeconds =
    0.02;  // of one round: the clock has risen, and waking threads is little

const RoofKernels& kernels() {
#if defined(__x86_64__)
  if (isa() == Isa::kAvx2) return roof_kernels_avx2();
  if (isa() >= Isa::kAvx512) return roof_kernels_avx512();
#endif
  return roof_kernels_scalar();
}

template <class F>
double seconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// The best round of work(thread), which all threads do at once.
template <class F>
double best_seconds(F&& work) {
  double best = 0;
  for (int round = 0; round < kRounds; ++round) {
    const double took = seconds([&] {
      parallel_for(0, num_threads(), 1, [&](int64_t first, int64_t last) {
        for (int64_t thread = first; thread < last; ++thread) work(thread);
      });
    });
    best = round == 0 ? took : std::min(best, took);
  }
  return best;
}

double measure(const RoofArithmetic& arithmetic) {
  std::vector<double> results(num_threads());  // kept, so that the work is
  int64_t steps = 1 << 16;
  const double guess = seconds([&] { results[0] = arithmetic.run(steps); });
  steps = std::max<int64_t>(steps, static_cast<int64_t>(steps * kSeconds / guess));
  const double best =
      best_seconds([&](int64_t thread) { results[thread] = arithmetic.run(steps); });
  return static_cast<double>(arithmetic.flops) * steps * results.size() / best;
}

}  // namespace

Roofs measure_roofs() {
  Roofs roofs = {};
  roofs.float32 = measure(kernels().float32);
  roofs.float64 = measure(kernels().float64);
#if defined(__x86_64__)
  if (isa() == Isa::kAmxBf16) roofs.bfloat16 = measure(roof_tiles_amxbf16());
  if (isa() == Isa::kAvx512Bf16) roofs.bfloat16 = measure(roof_pairs_avx512bf16());
#endif

  const int64_t threads = num_threads();
  const int64_t share = kBytes / sizeof(float) / threads;  // of each thread
  const std::unique_ptr<float[]> from(new float[share * threads]()),
      to(new float[share * threads]());
  std::vector<float> sums(threads);
  const double bytes = static_cast<double>(share * threads * sizeof(float));
  roofs.read = bytes / best_seconds([&](int64_t thread) {
                 sums[thread] = kernels().read(from.get() + thread * share, share);
               });
  roofs.copy =
      2 * bytes / best_seconds([&](int64_t thread) {
        std::memcpy(to.get() + thread * share, from.get() + thread * share, share * sizeof(float));
      });
  return roofs;
}

}  // namespace matcalc::cpu
