// The second stage of split-K: the partial sums of an element are added in ascending order.
#include "launch.cuh"
#include "storage.cuh"

namespace matcalc::cuda {
namespace {

constexpr int kThreads = 256;

// kRun neighbouring columns of a row of C for each thread: 16 bytes of partial sums, or one.
template <class Acc, int kRun>
__global__ void __launch_bounds__(kThreads)
    add_splits_kernel(const __grid_constant__ Gemm gemm,
                      const Acc* __restrict__ partial,  // [splits, items, m, n]
                      int64_t splits, bool packs_c) {
  using Run = Pack<Acc, kRun>;
  const int64_t elements = gemm.items * gemm.m * gemm.n;
  const int64_t step = static_cast<int64_t>(gridDim.x) * kThreads * kRun;
  int64_t element = (static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x) * kRun;
  for (; element < elements; element += step) {
    const Acc* part = partial + element;
    Run sum = *reinterpret_cast<const Run*>(part);
#pragma unroll 8  // as many loads are on their way at a time
    for (int64_t split = 1; split < splits; ++split) {
      const Run next = *reinterpret_cast<const Run*>(part + split * elements);
#pragma unroll
      for (int e = 0; e < kRun; ++e) sum.items[e] = add(sum.items[e], next.items[e]);
    }
    const int64_t line = element / gemm.n, j = element - line * gemm.n;
    const int64_t item = line / gemm.m, i = line - item * gemm.m;
    const int64_t offset = gemm.batch_c.at(item) + gemm.m_c.at(i);
    with_storage<Acc>(gemm.dtype_c, [&](auto* type) {
      using T = StorageOf<decltype(type)>;
      Pack<T, kRun> out;
#pragma unroll
      for (int e = 0; e < kRun; ++e) {
        Acc value = scaled(sum.items[e], gemm.scale);
        if (gemm.bias != nullptr) {
          value = add(value, load_bias<Acc>(gemm, gemm.bias_on_rows ? i : j + e));
        }
        narrow(value, out.items[e]);
      }
      T* c = static_cast<T*>(gemm.c) + offset;
      if (packs_c) {
        *reinterpret_cast<Pack<T, kRun>*>(c + j) = out;
      } else {
#pragma unroll
        for (int e = 0; e < kRun; ++e) c[gemm.n_c.at(j + e)] = out.items[e];
      }
    });
  }
}

template <class Acc, int kRun>
void start(const Gemm& gemm, const Device& device, const void* partial, int64_t splits) {
  constexpr int64_t kPerBlock = kThreads * kRun;
  const int64_t wanted = ceil_div(gemm.items * gemm.m * gemm.n, kPerBlock);
  const int64_t blocks = std::min<int64_t>(wanted, 16 * device.limits().multiprocessors);
  launch("add_splits", add_splits_kernel<Acc, kRun>, blocks, kThreads, 0, device, gemm,
         static_cast<const Acc*>(partial), splits, stores_packs(gemm, kRun));
}

}  // namespace

void add_splits(const Gemm& gemm, const Device& device, const void* partial, int64_t splits) {
  with_dtype(gemm.dtype, [&](auto* type) {
    using Acc = Accumulator<StorageOf<decltype(type)>>;
    constexpr int kRun = 16 / static_cast<int>(sizeof(Acc));
    if (gemm.n % kRun == 0) {
      start<Acc, kRun>(gemm, device, partial, splits);
    } else {
      start<Acc, 1>(gemm, device, partial, splits);
    }
  });
}

}  // namespace matcalc::cuda
