// The instructions of compute capability 9.0a that the warpgroup gemm is made of. Their twins on
// the host are in tests/emulation/ptx_hopper_emulation.h.
#pragma once

#include <cstdint>

#include "../numbers.h"
#include "platform.cuh"
#include "tensor_map.h"

#if defined(MATCALC_CUDA_EMULATION)
#include "ptx_hopper_emulation.h"
#else

#include <cuda.h>  // for its types alone: nothing is linked with the driver's library

namespace matcalc::cuda::hopper {

// ---------------------------------------------------------------------------------------------
// On the host

using TensorMap = CUtensorMap;

// Encodes a map, or returns false: the driver has no such function or does not take the shape.
inline bool encode_tensor_map(const TensorMapShape& shape, TensorMap* map) {
  // The driver's function is asked for by name, so that a machine without a driver can load the
  // library.
  static const auto encode = [] {
    constexpr const char* kName = "cuTensorMapEncodeTiled";
    void* found = nullptr;
    cudaDriverEntryPointQueryResult status = cudaDriverEntryPointSymbolNotFound;
#if CUDART_VERSION >= 12050
    constexpr unsigned kVersion = 12000;  // of the driver that first had it
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion(kName, &found, kVersion, cudaEnableDefault, &status);
#else
    const cudaError_t error = cudaGetDriverEntryPoint(kName, &found, cudaEnableDefault, &status);
#endif
    if (error != cudaSuccess) cudaGetLastError();  // nobody else is to find it
    const bool known = error == cudaSuccess && status == cudaDriverEntryPointSuccess;
    return known ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found) : nullptr;
  }();
  if (encode == nullptr) return false;
  const CUtensorMapDataType type =
      shape.dtype == Dtype::kBFloat16  ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
      : shape.dtype == Dtype::kFloat16 ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                                       : CU_TENSOR_MAP_DATA_TYPE_FLOAT32;
  cuuint64_t size[5], stride[4];
  for (int d = 0; d < 5; ++d) size[d] = shape.size[d];
  for (int d = 0; d < 4; ++d) stride[d] = shape.stride[d];
  const cuuint32_t box[] = {shape.box[0], shape.box[1], 1, 1, 1};
  const cuuint32_t step[] = {1, 1, 1, 1, 1};
  return encode(map, type, 5, const_cast<void*>(shape.data), size, stride, box, step,
                CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}

// ---------------------------------------------------------------------------------------------
// Barriers in shared memory

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A phase ends when all threads have arrived that the barrier was made for, and all bytes that were
// announced have come.
struct Barrier {
  uint64_t state;
};

__device__ inline void init_barrier(Barrier& barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(&barrier)),
               "r"(arrivals)
               : "memory");
}
// After the last init_barrier, in the thread that did them and before the block's next barrier:
// the copy engine sees them, too.
__device__ inline void publish_barriers() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
__device__ inline void arrive(Barrier& barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(&barrier))
               : "memory");
}
// Arrives, and announces that many bytes of copies.
__device__ inline void arrive_and_expect(Barrier& barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(&barrier)),
      "r"(bytes)
      : "memory");
}
// Waits until the phase of this parity has ended. The first phase has parity 0; of a new barrier
// the phase before it, of parity 1, counts as ended.
__device__ inline void wait(Barrier& barrier, uint32_t parity) {
  uint32_t ended;
  do {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%1], %2;\n"
        "selp.u32 %0, 1, 0, ended;\n"
        "}"
        : "=r"(ended)
        : "r"(shared_address(&barrier)), "r"(parity)
        : "memory");
  } while (ended == 0);
}

// A barrier of this many threads of the block, by number: 0 is __syncthreads.
__device__ inline void sync_threads(int number, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(number), "r"(threads) : "memory");
}

// ---------------------------------------------------------------------------------------------
// The copy engine

__device__ inline void prefetch_map(const TensorMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}

// Starts to load the box at these coordinates; its bytes count as come on the barrier.
__device__ inline void load_box(void* shared, const TensorMap& map, const int (&at)[5],
                                Barrier& barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes "
      "[%0], [%1, {%3, %4, %5, %6, %7}], [%2];" ::"r"(shared_address(shared)),
      "l"(&map), "r"(shared_address(&barrier)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]),
      "r"(at[4])
      : "memory");
}
// Starts to store a box. It belongs to the next group of the thread.
__device__ inline void store_box(const TensorMap& map, const int (&at)[5], const void* shared) {
  asm volatile(
      "cp.async.bulk.tensor.5d.global.shared::cta.tile.bulk_group "
      "[%0, {%2, %3, %4, %5, %6}], [%1];" ::"l"(&map),
      "r"(shared_address(shared)), "r"(at[0]), "r"(at[1]), "r"(at[2]), "r"(at[3]), "r"(at[4])
      : "memory");
}
__device__ inline void commit_stores() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
// Waits until at most the kGroups youngest groups of this thread still read shared memory.
template <int kGroups>
__device__ inline void wait_for_stores() {
  asm volatile("cp.async.bulk.wait_group.read %0;" ::"n"(kGroups) : "memory");
}
// What this thread has written to shared memory is there for the copy engine, too.
__device__ inline void publish_to_copies() {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// ---------------------------------------------------------------------------------------------
// Warpgroups

// How many registers the threads of this warpgroup have from here on.
template <int kRegisters>
__device__ inline void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ inline void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// The registers of the sums belong to the tensor cores until a product has been waited for. The
// compiler does not know: it must be kept from moving anything that touches them to the other side
// of the instructions below.
template <int kSums>
__device__ inline void pin(float (&sums)[kSums]) {
#pragma unroll
  for (int i = 0; i < kSums; ++i) asm volatile("" : "+f"(sums[i])::"memory");
}

// Before the first product, and where anything else has touched the sums since.
template <int kSums>
__device__ inline void begin_products(float (&sums)[kSums]) {
  pin(sums);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
}
// Makes a group of the products that the warpgroup has started since the last one.
__device__ inline void commit_products() {
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}
// Waits until at most the kGroups youngest groups are under way.
template <int kGroups, int kSums>
__device__ inline void wait_for_products(float (&sums)[kSums]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kGroups) : "memory");
  pin(sums);
}

// sums = A B, or sums += A B: A of 64 x 16, B of 16 x 2 kSums, both in shared memory, where the
// descriptors of wgmma_layout.h say; the type of their numbers is given by the last argument. The
// sums must not be touched before the product has been waited for.
#define MATCALC_SUMS_8(i)                                                                    \
  "+f"(sums[i]), "+f"(sums[i + 1]), "+f"(sums[i + 2]), "+f"(sums[i + 3]), "+f"(sums[i + 4]), \
      "+f"(sums[i + 5]), "+f"(sums[i + 6]), "+f"(sums[i + 7])
#define MATCALC_SUMS_64(i)                                                                  \
  MATCALC_SUMS_8(i), MATCALC_SUMS_8(i + 8), MATCALC_SUMS_8(i + 16), MATCALC_SUMS_8(i + 24), \
      MATCALC_SUMS_8(i + 32), MATCALC_SUMS_8(i + 40), MATCALC_SUMS_8(i + 48),               \
      MATCALC_SUMS_8(i + 56)
#define MATCALC_FIRST_64                                                                  \
  "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, " \
  "%19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, " \
  "%36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, " \
  "%53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
#define MATCALC_SECOND_64                                                                    \
  "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, %80, "    \
  "%81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, "    \
  "%98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, " \
  "%113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define MATCALC_MULTIPLY_128(type)                                                       \
  asm volatile(                                                                          \
      "{\n"                                                                              \
      ".reg .pred add;\n"                                                                \
      "setp.ne.b32 add, %66, 0;\n"                                                       \
      "wgmma.mma_async.sync.aligned.m64n128k16.f32." type "." type " {" MATCALC_FIRST_64 \
      "}, %64, %65, add, 1, 1, %67, %68;\n"                                              \
      "}"                                                                                \
      : MATCALC_SUMS_64(0)                                                               \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposedA), "n"(kTransposedB))
#define MATCALC_MULTIPLY_256(type)                                                       \
  asm volatile(                                                                          \
      "{\n"                                                                              \
      ".reg .pred add;\n"                                                                \
      "setp.ne.b32 add, %130, 0;\n"                                                      \
      "wgmma.mma_async.sync.aligned.m64n256k16.f32." type "." type " {" MATCALC_FIRST_64 \
      ", " MATCALC_SECOND_64                                                             \
      "}, %128, %129, add, 1, 1, %131, %132;\n"                                          \
      "}"                                                                                \
      : MATCALC_SUMS_64(0), MATCALC_SUMS_64(64)                                          \
      : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(kTransposedA), "n"(kTransposedB))

template <int kTransposedA, int kTransposedB>
__device__ inline void multiply(float (&sums)[64], uint64_t a, uint64_t b, bool add, Bf16) {
  MATCALC_MULTIPLY_128("bf16");
}
template <int kTransposedA, int kTransposedB>
__device__ inline void multiply(float (&sums)[64], uint64_t a, uint64_t b, bool add, F16) {
  MATCALC_MULTIPLY_128("f16");
}
template <int kTransposedA, int kTransposedB>
__device__ inline void multiply(float (&sums)[128], uint64_t a, uint64_t b, bool add, Bf16) {
  MATCALC_MULTIPLY_256("bf16");
}
template <int kTransposedA, int kTransposedB>
__device__ inline void multiply(float (&sums)[128], uint64_t a, uint64_t b, bool add, F16) {
  MATCALC_MULTIPLY_256("f16");
}

#undef MATCALC_SUMS_8
#undef MATCALC_SUMS_64
#undef MATCALC_FIRST_64
#undef MATCALC_SECOND_64
#undef MATCALC_MULTIPLY_128
#undef MATCALC_MULTIPLY_256

}  // namespace matcalc::cuda::hopper
#endif
