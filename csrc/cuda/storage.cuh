// Elements as they are stored and the accumulators that they become: dtypes known at run time only,
// packs of neighbours, offsets.
#pragma once

#include <cstdint>
#include <type_traits>

#include "gemm.cuh"

namespace matcalc::cuda {

// Neighbouring elements that are read or written as one.
template <class T, int kCount>
struct alignas(kCount * sizeof(T)) Pack {
  T items[kCount];
};

// Calls body(T*{}) with the stored type T of a dtype whose sums are kept in Acc: a branch that all
// threads take alike.
template <class Acc, class F>
__device__ __forceinline__ void with_storage(Dtype dtype, F&& body) {
  if constexpr (std::is_same_v<Acc, float>) {
    if (dtype == Dtype::kFloat32) {
      body(static_cast<float*>(nullptr));
    } else if (dtype == Dtype::kBFloat16) {
      body(static_cast<Bf16*>(nullptr));
    } else {
      body(static_cast<F16*>(nullptr));
    }
  } else if constexpr (std::is_same_v<Acc, uint32_t>) {
    if (dtype == Dtype::kInt32) {
      body(static_cast<int32_t*>(nullptr));
    } else if (dtype == Dtype::kInt16) {
      body(static_cast<int16_t*>(nullptr));
    } else if (dtype == Dtype::kInt8) {
      body(static_cast<int8_t*>(nullptr));
    } else {
      body(static_cast<uint8_t*>(nullptr));
    }
  } else if constexpr (std::is_same_v<Acc, uint64_t>) {
    body(static_cast<int64_t*>(nullptr));
  } else {
    body(static_cast<Acc*>(nullptr));
  }
}
template <class Pointer>
using StorageOf = std::remove_pointer_t<Pointer>;

// The dtype of stored accumulators: of partial sums.
template <class Acc>
constexpr Dtype accumulator_dtype() {
  if constexpr (std::is_same_v<Acc, float>) return Dtype::kFloat32;
  if constexpr (std::is_same_v<Acc, double>) return Dtype::kFloat64;
  if constexpr (std::is_same_v<Acc, Complex<float>>) return Dtype::kComplex64;
  if constexpr (std::is_same_v<Acc, Complex<double>>) return Dtype::kComplex128;
  return sizeof(Acc) == 8 ? Dtype::kInt64 : Dtype::kInt32;
}

// What a load leaves in registers: the bits of an element. Widening comes later: done at once, it
// would wait for memory. Whole numbers are never widened: of a sum modulo 2^32, the low bits are
// wanted, which do not depend on how the factors' high bits are filled.
template <class Acc>
using Raw = std::conditional_t<std::is_same_v<Acc, float>, uint32_t, Acc>;

// Calls body(R*{}) with a type of `size` bytes, whose values are converted to Raw<Acc>.
template <class Acc, class F>
__device__ __forceinline__ void with_size(int size, F&& body) {
  if constexpr (std::is_same_v<Acc, float> || std::is_same_v<Acc, uint32_t>) {
    if (size == 4) {
      body(static_cast<uint32_t*>(nullptr));
    } else if (std::is_same_v<Acc, float> || size == 2) {
      body(static_cast<uint16_t*>(nullptr));
    } else {
      body(static_cast<uint8_t*>(nullptr));
    }
  } else {
    body(static_cast<Acc*>(nullptr));
  }
}

template <class Acc, int kCount>
__device__ __forceinline__ void widen_raw(Dtype dtype, const Raw<Acc> (&raw)[kCount],
                                          Acc (&values)[kCount]) {
  const auto widen_as = [&](auto decode) {
#pragma unroll
    for (int i = 0; i < kCount; ++i) values[i] = decode(raw[i]);
  };
  if constexpr (!std::is_same_v<Acc, float>) {
    widen_as([](Acc value) { return value; });
  } else if (dtype == Dtype::kFloat32) {
    widen_as([](uint32_t bits) { return float_of(bits); });
  } else if (dtype == Dtype::kBFloat16) {
    widen_as([](uint32_t bits) { return widen(Bf16{static_cast<uint16_t>(bits)}); });
  } else {
    widen_as([](uint32_t bits) { return widen(F16{static_cast<uint16_t>(bits)}); });
  }
}

// Whether every step is a multiple of so many elements.
inline bool steps_by(const Offsets& offsets, int64_t multiple) {
  bool all = offsets.table == nullptr;
  for (int d = 0; d < offsets.count; ++d) all = all && offsets.stride[d] % multiple == 0;
  return all;
}
inline bool is_aligned(const void* pointer, int64_t bytes) {
  return reinterpret_cast<uintptr_t>(pointer) % static_cast<uintptr_t>(bytes) == 0;
}
// Whether C's columns can be written in aligned packs of so many.
inline bool stores_packs(const Gemm& gemm, int64_t pack) {
  return gemm.n_c.step() == 1 && steps_by(gemm.m_c, pack) && steps_by(gemm.batch_c, pack) &&
         is_aligned(gemm.c, pack * dtype_size(gemm.dtype_c));
}

// Offsets::at: the divisions that several dimensions take are kept out of the way.
[[gnu::noinline]] __device__ inline int64_t far_offset(const Offsets& offsets, int64_t position) {
  return offsets.at(position);
}
__device__ __forceinline__ int64_t offset_at(const Offsets& offsets, int64_t position) {
  if (offsets.table != nullptr || offsets.count > 1) return far_offset(offsets, position);
  return offsets.count == 0 ? 0 : position * offsets.stride[0];
}

// Of a column, or of a row where the bias runs along rows.
template <class Acc>
__device__ __forceinline__ Acc load_bias(const Gemm& gemm, int64_t position) {
  Acc value{};
  with_storage<Acc>(gemm.dtype, [&](auto* type) {
    using T = StorageOf<decltype(type)>;
    value = widen(static_cast<const T*>(gemm.bias)[position * gemm.bias_stride]);
  });
  return value;
}

}  // namespace matcalc::cuda
