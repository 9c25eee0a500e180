// Products whose cost is memory traffic: what level2.cu, gemv.cu and outer.cu share.
#pragma once

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <type_traits>

#include "simt.cuh"

namespace matcalc::cuda {

// Threads of every block here: 8 warps.
constexpr int kLevel2Threads = 256;
constexpr int kLevel2Warps = kLevel2Threads / 32;

// The products that level2.cu takes, of numbers that are not whole: bias + scale * A S B with sums
// of one term or none; and a matrix times a vector, a dot, a sum of rows or columns. Each does
// nothing and returns false where it cannot take the product.
bool run_outer(const Gemm& gemm, const Device& device);
bool run_gemv(const Gemm& gemm, const Device& device, Workspace& workspace);

// kCount neighbouring elements as they are stored, read and written in pieces of 16 bytes, or as
// one where they are fewer. Pairs of 16-bit numbers stay in one register until they are widened.
template <class T, int kCount>
class Run {
  static constexpr bool kPairs = sizeof(T) == 2 && kCount > 1;
  using Unit = std::conditional_t<kPairs, uint32_t, T>;
  static constexpr int kUnits = kPairs ? kCount / 2 : kCount;
  static constexpr int kPiece = std::min<int>(kUnits, 16 / sizeof(Unit));
  struct [[gnu::may_alias]] alignas(kPiece * sizeof(Unit)) Piece {
    Unit units[kPiece];
  };

 public:
  __device__ __forceinline__ void clear() {
#pragma unroll
    for (Piece& piece : pieces_) piece = Piece{};
  }
  __device__ __forceinline__ void load(const T* from) {
#pragma unroll
    for (int i = 0; i < kUnits / kPiece; ++i) pieces_[i] = reinterpret_cast<const Piece*>(from)[i];
  }
  __device__ __forceinline__ void store(T* to) const {
#pragma unroll
    for (int i = 0; i < kUnits / kPiece; ++i) reinterpret_cast<Piece*>(to)[i] = pieces_[i];
  }
  __device__ __forceinline__ void set(int i, T value) {
    if constexpr (kPairs) {
      uint32_t& pair = unit(i / 2);
      pair = i % 2 == 0 ? (pair & 0xffff0000) | value.bits
                        : (pair & 0x0000ffff) | static_cast<uint32_t>(value.bits) << 16;
    } else {
      unit(i) = value;
    }
  }
  __device__ __forceinline__ T get(int i) const {
    if constexpr (kPairs) {
      const uint32_t pair = unit(i / 2);
      return {static_cast<uint16_t>(i % 2 == 0 ? pair : pair >> 16)};
    } else {
      return unit(i);
    }
  }
  __device__ __forceinline__ Accumulator<T> operator[](int i) const {
    if constexpr (kPairs && std::is_same_v<T, Bf16>) {
      const uint32_t pair = unit(i / 2);
      return float_of(i % 2 == 0 ? pair << 16 : pair & 0xffff0000);
    } else {
      return widen(get(i));
    }
  }

 private:
  __device__ __forceinline__ Unit& unit(int i) { return pieces_[i / kPiece].units[i % kPiece]; }
  __device__ __forceinline__ const Unit& unit(int i) const {
    return pieces_[i / kPiece].units[i % kPiece];
  }

  Piece pieces_[kUnits / kPiece];
};

// Elements of 16 bytes.
template <class T>
inline constexpr int kFullPack = 16 / static_cast<int>(sizeof(T));

// Whether runs of `count` elements, the first of them at a multiple of `count`, can be loaded from
// or stored to an operand that has these offsets beside those along its contiguous direction.
inline bool takes_runs(const void* data, Dtype dtype, int64_t count,
                       std::initializer_list<const Offsets*> others) {
  const int64_t size = dtype_size(dtype), bytes = std::min<int64_t>(16, count * size);
  bool all = is_aligned(data, bytes);
  for (const Offsets* offsets : others) all = all && steps_by(*offsets, bytes / size);
  return all;
}

// How many consecutive positions every one of several operands steps through evenly: kernels walk
// along so many at a time, and look up where the next ones begin. 0: there is no such number.
inline int64_t even_positions(int64_t numel, std::initializer_list<const Offsets*> operands) {
  int64_t even = numel;
  for (const Offsets* offsets : operands) {
    if (offsets->table != nullptr) return 0;
    // Innermost dimensions are the last of one list, merged: of two of their sizes one divides the
    // other.
    if (offsets->count > 1) even = std::min(even, offsets->size[offsets->count - 1]);
  }
  return even;
}
inline int64_t innermost_step(const Offsets& offsets) {
  return offsets.count == 0 ? 0 : offsets.stride[offsets.count - 1];
}
// Where each of the stretches of so many positions begins.
inline Offsets stretches_of(Offsets offsets, int64_t positions) {
  offsets.numel /= positions;
  if (offsets.count > 0) {
    const int last = offsets.count - 1;
    offsets.size[last] /= positions;
    offsets.stride[last] *= positions;
    if (offsets.size[last] == 1) offsets.count = last;
  }
  return offsets;
}

// The smallest power of two that is at least `count`, within [least, most].
constexpr int lanes_for(int64_t count, int least, int most) {
  int lanes = least;
  while (lanes < most && lanes < count) lanes *= 2;
  return lanes;
}

}  // namespace matcalc::cuda
