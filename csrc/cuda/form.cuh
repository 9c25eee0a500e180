// Forms with a matrix of their own for each item: what their kernels share. Device code; form.cu
// plans and launches it.
//
// The bytes of A are the cost. It is walked along its contiguous dimension ("by columns" y and x
// change places), and each element is read once for all that is wanted: of a row a_i, the thread
// that holds a piece of it adds y_i a_i to its part of q = A^T y, and its part of a_i x, which
// shuffles add up over the threads beside it, to p = A x. The value is x^T q.
//
//   form_small   up to 32 x 32: a matrix for some lanes of a warp
//   form_tiles   any size: a matrix for a block or a part of one, which then makes the outputs; or
//                tiles of a matrix for the blocks, whose sums form_finish adds in a fixed order
//   form_outer   da = g y x^T by itself
//
// A symmetric A is the sum of its lower triangle with half the diagonal, L, and of L^T: then
// A x = L x + L^T x, and that is p + q of L. Only the elements of L are read.
//
// Which kernel runs and how a matrix is cut depend on its shape and strides alone: the bits of a
// result depend neither on the batch nor on the GPU.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "index.cuh"
#include "storage.cuh"

namespace matcalc::cuda::forms {

// One vector, or one number, for each item.
struct FormInput {
  const void* data;  // nullptr: absent
  int64_t stride;
  Offsets batch;
};
struct FormOutput {
  void* data;  // nullptr: not wanted
  int64_t stride;
  Offsets batch;
};

// The elements of A that are read, as A is walked.
enum class Triangle : int32_t { kNone, kLower, kUpper };

// A form as its matrix is walked.
struct Walk {
  int64_t items, rows, cols;
  const void* a;     // [items, rows, cols]
  int64_t row, col;  // its strides
  Offsets batch_a;
  FormInput y, x;            // [items, rows], [items, cols]
  FormInput g;               // [items]
  FormOutput alpha, dy, dx;  // [items], [items, rows], [items, cols]
  Dtype dtype_d;             // of dy and dx
  bool quadratic;            // y is x, and dx = g (p + q)
  Triangle triangle;

  MATCALC_HD bool wants_products() const {
    return dy.data != nullptr || (quadratic && dx.data != nullptr);
  }
  MATCALC_HD bool reads_matrix() const {
    return alpha.data != nullptr || dy.data != nullptr || dx.data != nullptr;
  }
};

// da = g y x^T, each item [rows, cols] and contiguous, however A is walked.
struct Outer {
  int64_t items, rows, cols;
  FormInput y, x, g;
  void* da;  // nullptr: not wanted
  Offsets batch_da;
};

// How a matrix is shared out. A group of `width` x `down` threads takes one tile: `width` threads
// stand side by side along a row, each with some of its columns, and `down` of them below each
// other.
struct TilePlan {
  int32_t width, down;
  int32_t members;     // groups of a block, each with an item of its own
  int32_t cols;        // of a tile: all that `width` threads have
  int32_t stage_rows;  // rows whose y and p are in shared memory at a time
  int64_t rows;        // of a tile
  int64_t row_tiles, col_tiles;
  // The sums of each tile; nullptr where there is only one, which is the result.
  void* p;      // [items, col_tiles, rows of the matrix]
  void* q;      // [items, row_tiles, columns of the matrix]
  void* alpha;  // [items, row_tiles, col_tiles]

  MATCALC_HD int32_t group() const { return width * down; }
  MATCALC_HD int64_t tiles() const { return row_tiles * col_tiles; }
  MATCALC_HD bool single() const { return tiles() == 1; }
};

// Rows of a thread between two rounds of shuffles: one 16-byte load of each is on its way at a
// time, 128 bytes, and eight sums over 32 lanes take 9 shuffles where one by one they take 40.
constexpr int kFormRows = 8;

// ---------------------------------------------------------------------------------------------
// Numbers on their way.

template <class Acc>
__device__ __forceinline__ Acc shuffle_from(Acc value, int lane, int width) {
  if constexpr (kIsComplex<Acc>) {
    return {__shfl_sync(0xffffffffu, value.re, lane, width),
            __shfl_sync(0xffffffffu, value.im, lane, width)};
  } else {
    return __shfl_sync(0xffffffffu, value, lane, width);
  }
}

// The sum over `width` lanes, a power of two; all of them get it.
template <class Acc>
__device__ __forceinline__ Acc sum_of_lanes(Acc value, int width) {
  for (int with = width / 2; with > 0; with /= 2) value = add(value, shuffle_xor(value, with));
  return value;
}

// The sums of kRows values over `width` lanes, kRows or more; lane l gets that of value
// l / (width / kRows). Each step halves the values that a lane still has to do with.
template <int kRows, class Acc>
__device__ __forceinline__ Acc sum_of_rows(Acc (&values)[kRows], int width) {
  const int lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int half = kRows / 2; half > 0; half /= 2) {
    width /= 2;
    const bool upper = (lane & width) != 0;
#pragma unroll
    for (int r = 0; r < half; ++r) {
      const Acc given = upper ? values[r] : values[r + half];
      const Acc kept = upper ? values[r + half] : values[r];
      values[r] = add(kept, shuffle_xor(given, width));
    }
  }
  return sum_of_lanes(values[0], width);
}

template <class T>
__device__ __forceinline__ Accumulator<T> load_entry(const FormInput& input, int64_t offset,
                                                     int64_t index) {
  return widen(static_cast<const T*>(input.data)[offset + index * input.stride]);
}

// g of an item, which may be absent: a complex product with 1 would make a NaN of an infinity.
template <class T>
struct Factor {
  using Acc = Accumulator<T>;
  Acc g;
  bool present;

  __device__ __forceinline__ Factor(const FormInput& input, int64_t offset)
      : g(one<Acc>()), present(input.data != nullptr) {
    if (present) g = load_entry<T>(input, offset, 0);
  }
  __device__ __forceinline__ Acc times(Acc value) const {
    return present ? multiply(g, value) : value;
  }
};

// An entry of dy or dx, from the entry of p or q, or of their sum.
template <class T>
__device__ __forceinline__ void store_gradient(const Walk& walk, const FormOutput& output,
                                               int64_t offset, int64_t index,
                                               const Factor<T>& factor, Accumulator<T> sum) {
  using Acc = Accumulator<T>;
  Acc value = conjugate_if(true, sum);
  if (walk.triangle != Triangle::kNone) value = add(value, value);
  value = factor.times(value);
  with_storage<Acc>(walk.dtype_d, [&](auto* type) {
    using D = StorageOf<decltype(type)>;
    narrow(value, static_cast<D*>(output.data)[offset + index * output.stride]);
  });
}

// What a thread takes of one row: kCols neighbouring elements in one 16-byte load, or as many at a
// distance, so that the loads of neighbouring threads are neighbours: then at most four, which for
// 16-bit numbers take as many registers as eight in one.
template <class T, bool kVector>
struct Piece {
  static constexpr int kPerLoad = 16 / static_cast<int>(sizeof(T));
  static constexpr int kCols = kVector || kPerLoad < 4 ? kPerLoad : 4;
  // 16-bit numbers travel in pairs: the compiler would load them one by one.
  static constexpr bool kPaired = kVector && sizeof(T) == 2;
  using Word = std::conditional_t<kPaired, uint32_t, T>;
  Pack<Word, kPaired ? kCols / 2 : kCols> raw;

  // The first `count` elements, zeros for the others. With kVector, count is 0 or kCols.
  __device__ __forceinline__ void load(const T* from, int64_t step, int count) {
    if constexpr (kVector) {
      raw = {};
      if (count > 0) raw = *reinterpret_cast<const decltype(raw)*>(from);
    } else {
#pragma unroll
      for (int c = 0; c < kCols; ++c) raw.items[c] = c < count ? from[c * step] : T{};
    }
  }
  __device__ __forceinline__ Accumulator<T> at(int c) const {
    if constexpr (kPaired) {
      const uint32_t pair = raw.items[c / 2];
      return widen(T{static_cast<uint16_t>(c % 2 == 0 ? pair : pair >> 16)});
    } else {
      return widen(raw.items[c]);
    }
  }
  __device__ __forceinline__ void set(int c, Accumulator<T> value) {
    if constexpr (kPaired) {
      T low;
      narrow(value, low);
      if (c % 2 == 0) {
        raw.items[c / 2] = low.bits;
      } else {
        raw.items[c / 2] |= static_cast<uint32_t>(low.bits) << 16;
      }
    } else {
      narrow(value, raw.items[c]);
    }
  }
  __device__ __forceinline__ void store(T* to, int64_t step, int count) const {
    if constexpr (kVector) {
      if (count > 0) *reinterpret_cast<decltype(raw)*>(to) = raw;
    } else {
#pragma unroll
      for (int c = 0; c < kCols; ++c) {
        if (c < count) to[c * step] = raw.items[c];
      }
    }
  }
};

}  // namespace matcalc::cuda::forms
