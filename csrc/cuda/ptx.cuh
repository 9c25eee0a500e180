// The instructions of compute capability 8.0 that the tensor-core gemm is made of. Their twins on
// the host are in tests/emulation/ptx_emulation.h.
#pragma once

#include <cstdint>

#include "../numbers.h"
#include "platform.cuh"

#if defined(MATCALC_CUDA_EMULATION)
#include "ptx_emulation.h"
#else

namespace matcalc::cuda {

__device__ inline uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// blockIdx.x and threadIdx.x, read anew each time: what comes of them need not stay in registers
// between two uses.
__device__ inline uint32_t read_block_index() {
  uint32_t index;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(index));
  return index;
}
__device__ inline int read_thread_index() {
  int index;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(index));
  return index;
}

// Copies 16 bytes to shared memory, past the registers and L1. Only the first `bytes` are read, the
// rest is filled with zeros; both addresses are multiples of 16.
__device__ inline void copy_async(void* shared, const void* global, int bytes) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(bytes)
               : "memory");
}
// Makes a group of the copies that this thread has started since the last one.
__device__ inline void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most the kGroups youngest groups of this thread are under way.
template <int kGroups>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

// Four 8 x 8 matrices of 16-bit numbers. Lane i gives the address of row i % 8 (16 bytes) of matrix
// i / 8 and gets, of each, the two numbers 2 (i % 4) of row i / 4.
__device__ inline void load_matrices(const void* row, uint32_t (&matrices)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row))
               : "memory");
}
// The same, each matrix transposed on the way.
__device__ inline void load_matrices_transposed(const void* row, uint32_t (&matrices)[4]) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3])
               : "r"(shared_address(row))
               : "memory");
}

// sums += A B for A of 16 x 16, B of 16 x 8, in fragments (mma_maps.h); the type of the numbers is
// given by the last argument.
__device__ inline void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1, Bf16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
__device__ inline void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1, F16) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// A of 16 x 8, B of 8 x 8. The tensor core looks at the upper 19 bits of a float32: TF32.
__device__ inline void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0,
                                          uint32_t b1, float) {
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// 9.0 has this shape, at twice the rate of the small one, of which it takes four on 8.0.
__device__ inline void multiply_fragments(double (&sums)[4], const double (&a)[4], double b0,
                                          double b1, double) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+d"(sums[0]), "+d"(sums[1]), "+d"(sums[2]), "+d"(sums[3])
      : "d"(a[0]), "d"(a[1]), "d"(a[2]), "d"(a[3]), "d"(b0), "d"(b1));
#else
  const auto small = [](double& c0, double& c1, double a_row, double b_col) {
    asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%0, %1};"
                 : "+d"(c0), "+d"(c1)
                 : "d"(a_row), "d"(b_col));
  };
  small(sums[0], sums[1], a[0], b0);
  small(sums[2], sums[3], a[1], b0);
  small(sums[0], sums[1], a[2], b1);
  small(sums[2], sums[3], a[3], b1);
#endif
}

}  // namespace matcalc::cuda
#endif
