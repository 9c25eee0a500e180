// The twins of csrc/cuda/ptx.cuh on the host, written from the tables of the PTX ISA: "Data
// Movement and Conversion Instructions: cp.async", "Warp-level matrix instructions: ldmatrix" and
// "Matrix Fragments for mma.m16n8k8 / mma.m16n8k16".
#pragma once

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "../../csrc/numbers.h"
#include "cuda_emulation.h"

namespace matcalc::cuda {
namespace emulation {

// ---------------------------------------------------------------------------------------------
// cp.async. What is copied arrives as late as can be, when its thread waits for it; until then the
// target holds NaNs. So a kernel that waits or synchronizes too little computes with NaNs.

struct AsyncCopy {
  void* to;
  const void* from;
  int bytes;
};
struct AsyncCopies {
  std::vector<AsyncCopy> open;                 // since the last commit
  std::vector<std::vector<AsyncCopy>> groups;  // the oldest first
};

inline AsyncCopies& async_copies() {
  static std::array<AsyncCopies, kMaxThreads> of_threads;
  AsyncCopies& mine = of_threads[threadIdx.x];
  return mine;
}

inline void land(const AsyncCopy& copy) {
  std::memset(copy.to, 0, 16);
  std::memcpy(copy.to, copy.from, static_cast<size_t>(copy.bytes));
}

// ---------------------------------------------------------------------------------------------
// mma. Every lane shows its registers, and computes its own four numbers of D from all of them.

template <class Register>
struct MmaOperands {
  Register a[4], b[2];
};

template <class Register>
const MmaOperands<Register>* show(const Register (&a)[4], Register b0, Register b1) {
  return warp_exchange(MmaOperands<Register>{{a[0], a[1], a[2], a[3]}, {b0, b1}});
}

// D's fragment, of all shapes used here: c0 and c1 in row groupID, c2 and c3 in row groupID + 8,
// the columns threadID_in_group * 2 + (i & 1).
template <class Sum, class A, class B>
void multiply_add(Sum (&sums)[4], int depth, const A& a_at, const B& b_at) {
  const int group = static_cast<int>(lane()) >> 2, in_group = static_cast<int>(lane()) % 4;
  for (int i = 0; i < 4; ++i) {
    const int row = i < 2 ? group : group + 8, col = in_group * 2 + (i & 1);
    double sum = static_cast<double>(sums[i]);
    for (int k = 0; k < depth; ++k) sum += a_at(row, k) * b_at(k, col);
    sums[i] = static_cast<Sum>(sum);
  }
}

// .m16n8k16 of 16-bit numbers. A: a0 ... a7, two to a register, the lower half first,
//   row = groupID for a0, a1, a4, a5, groupID + 8 for the others
//   col = threadID_in_group * 2 + (i & 1), + 8 for i >= 4
// B: b0 ... b3, row = threadID_in_group * 2 + (i & 1), + 8 for i >= 2; col = groupID.
template <class T>
void mma_m16n8k16(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  const auto* all = show(a, b0, b1);
  const auto half_of = [](uint32_t word, int i) {
    return static_cast<double>(widen(T{static_cast<uint16_t>(word >> (16 * (i & 1)))}));
  };
  const auto a_at = [&](int row, int col) {
    const int holder = row % 8 * 4 + col % 8 / 2;
    const int i = (row >= 8 ? 2 : 0) + (col >= 8 ? 4 : 0) + col % 2;
    return half_of(all[holder].a[i / 2], i);
  };
  const auto b_at = [&](int row, int col) {
    const int holder = col * 4 + row % 8 / 2;
    const int i = (row >= 8 ? 2 : 0) + row % 2;
    return half_of(all[holder].b[i / 2], i);
  };
  multiply_add(sums, 16, a_at, b_at);
}

// .m16n8k8 of .tf32 and .f64. A: row = groupID for a0, a2, groupID + 8 for a1, a3;
// col = threadID_in_group for a0, a1, + 4 for a2, a3. B: row = threadID_in_group for b0, + 4 for
// b1; col = groupID.
template <class Sum, class Register, class ToDouble>
void mma_m16n8k8(Sum (&sums)[4], const Register (&a)[4], Register b0, Register b1,
                 const ToDouble& to_double) {
  const auto* all = show(a, b0, b1);
  const auto a_at = [&](int row, int col) {
    return to_double(all[row % 8 * 4 + col % 4].a[(row >= 8 ? 1 : 0) + (col >= 4 ? 2 : 0)]);
  };
  const auto b_at = [&](int row, int col) {
    return to_double(all[col * 4 + row % 4].b[row >= 4 ? 1 : 0]);
  };
  multiply_add(sums, 8, a_at, b_at);
}

// ldmatrix .x4: lane i names row i % 8 of matrix i / 8; lane l gets, of each matrix, the numbers
// 2 (l % 4) and + 1 of row l / 4, or with .trans of column l / 4.
inline void ldmatrix_x4(const void* row, bool transposed, uint32_t (&matrices)[4]) {
  if (shared_address(row) % 16 != 0) fail("ldmatrix: a row is not aligned to 16 bytes");
  const auto* rows = warp_exchange(row);
  const int line = static_cast<int>(lane()) / 4, pair = static_cast<int>(lane()) % 4 * 2;
  for (int matrix = 0; matrix < 4; ++matrix) {
    const auto number = [&](int r, int c) {
      uint16_t value;
      std::memcpy(&value, static_cast<const char*>(rows[matrix * 8 + r]) + c * 2, sizeof(value));
      return static_cast<uint32_t>(value);
    };
    const uint32_t low = transposed ? number(pair, line) : number(line, pair);
    const uint32_t high = transposed ? number(pair + 1, line) : number(line, pair + 1);
    matrices[matrix] = low | high << 16;
  }
}

}  // namespace emulation

inline uint32_t read_block_index() { return blockIdx.x; }
inline int read_thread_index() { return static_cast<int>(threadIdx.x); }

inline void copy_async(void* shared, const void* global, int bytes) {
  if (bytes < 0 || bytes > 16) emulation::fail("cp.async: more than 16 bytes, or fewer than none");
  if (emulation::shared_address(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    emulation::fail("cp.async: an address is not aligned to 16 bytes");
  }
  std::memset(shared, 0xff, 16);
  emulation::async_copies().open.push_back({shared, global, bytes});
}
inline void commit_copies() {
  emulation::AsyncCopies& copies = emulation::async_copies();
  copies.groups.push_back(std::move(copies.open));
  copies.open.clear();
}
template <int kGroups>
void wait_for_copies() {
  auto& groups = emulation::async_copies().groups;
  while (groups.size() > static_cast<size_t>(kGroups)) {
    for (const emulation::AsyncCopy& copy : groups.front()) emulation::land(copy);
    groups.erase(groups.begin());
  }
}

inline void load_matrices(const void* row, uint32_t (&matrices)[4]) {
  emulation::ldmatrix_x4(row, false, matrices);
}
inline void load_matrices_transposed(const void* row, uint32_t (&matrices)[4]) {
  emulation::ldmatrix_x4(row, true, matrices);
}

inline void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                               Bf16) {
  emulation::mma_m16n8k16<Bf16>(sums, a, b0, b1);
}
inline void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                               F16) {
  emulation::mma_m16n8k16<F16>(sums, a, b0, b1);
}
inline void multiply_fragments(float (&sums)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                               float) {
  // What a number has below TF32's 19 bits is not looked at: rounding is the kernel's to do.
  emulation::mma_m16n8k8(sums, a, b0, b1, [](uint32_t bits) {
    return static_cast<double>(std::bit_cast<float>(bits & 0xffffe000));
  });
}
inline void multiply_fragments(double (&sums)[4], const double (&a)[4], double b0, double b1,
                               double) {
  emulation::mma_m16n8k8(sums, a, b0, b1, [](double value) { return value; });
}

}  // namespace matcalc::cuda
