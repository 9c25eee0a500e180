// What one instruction set offers the gemm driver: the register tile and the packing
// routines, with the block sizes that fit them. One table per accumulator type.
#pragma once

#include <cstdint>
#include <type_traits>

#include "../../kernels.h"

namespace matcalc::cpu {

template <class T>
struct Complex {
  T re, im;

  Complex& operator+=(Complex other) {
    re += other.re;
    im += other.im;
    return *this;
  }
};

// One operand block to be packed: element (w, k) lies at src + w_offset[w] + k_offset[k], where w
// runs across the panel (rows of A, columns of B) and k along it.
struct PackSource {
  const void* src;
  const int64_t* w_offset;  // [width]
  const int64_t* k_offset;  // [depth]
  int64_t k_step;           // k_offset[k + 1] - k_offset[k], kNoStep where it varies
  bool conj;                // where there is a second factor; elsewhere the tile conjugates
  // A second factor, element by element: the packed value is src * scale.
  const void* scale;              // nullptr: none
  const int64_t* scale_w_offset;  // [width]
  const int64_t* scale_k_offset;  // [depth]
  int64_t scale_k_step;
  bool conj_scale;
  // The second reading of a folded square matrix, and where each w and k stands in it.
  Fold fold;
  const int64_t* w_offset2;  // [width]
  const int64_t* k_offset2;  // [depth]
  int64_t k_step2;
  const int64_t* w_index;  // [width]
  const int64_t* k_index;  // [depth]
  double factor;           // multiplies every packed value
};

// A run of `count` small products, each operand as many elements after the one before as its step
// says. Strides count elements as they are stored; the columns of C are contiguous.
struct SmallProducts {
  int64_t count, rows, cols, depth;
  const void *a, *b;
  void* c;
  int64_t a_row, a_col, b_row, b_col, c_row;
  int64_t a_step, b_step, c_step;
  const void* bias;  // [cols], or nullptr
  bool conj_a, conj_b;
};
constexpr int64_t kSmallDepth = 32;  // the largest depth of a small product

// Two bfloat16 numbers that follow each other along the depth of a product: what instructions for
// dot products of pairs take. The first is in the low half.
struct BfPair {
  uint32_t bits;
};

// T: the accumulator, a real or complex number; P: an element of the packed operands.
template <class T, class P = T>
struct GemmKernels {
  int mr;                  // rows of the register tile
  int nr;                  // columns of the register tile
  int kc;                  // packed depth of a block
  int depth_step = 1;      // what the packed depth is rounded up to, with zeros
  bool row_tiles = false;  // the tile takes mr rows of A, packed or not, however few are asked for
  // Of A, packed at a time for several blocks of columns: rows enough that packing B for them again
  // costs little (2 % of a product for 2048 rows in float32).
  int packed_bytes = 3 << 20;

  // Terms of a sum that a packed element holds.
  static constexpr int64_t kPair = std::is_same_v<P, T> ? 1 : 2;
  // Packed elements along so many terms.
  int64_t packed_depth(int64_t depth) const {
    const int64_t packed = (depth + kPair - 1) / kPair;
    return (packed + depth_step - 1) / depth_step * depth_step;
  }
  // Columns of a packed block of B that takes so many bytes.
  int64_t block_cols(int64_t bytes) const {
    const int64_t panel_bytes = int64_t{kc} * nr * static_cast<int64_t>(sizeof(P));
    return (bytes < panel_bytes ? 1 : bytes / panel_bytes) * nr;
  }

  // c[i, j] = base[i, j] + sum_p a[i, p] b[p, j] for i < rows <= mr, j < cols <= nr. The base is C
  // itself, a bias, with a row step of 0 where all rows have the same, or nullptr.
  using Tile = void (*)(int64_t rows, int64_t cols, int64_t depth, const P* a, int64_t a_row,
                        int64_t a_col,            // [rows, depth]
                        const P* b, int64_t ldb,  // [depth, cols], unit column stride
                        T* c, int64_t ldc,        // [rows, cols], unit column stride
                        const T* base, int64_t ld_base);
  Tile tile;
  // The same of conjugates of A's numbers, B's or both.
  Tile tile_conj_a = nullptr, tile_conj_b = nullptr, tile_conj_ab = nullptr;

  // One panel of A's rows, or of B's columns: dst[k * panel + w] for w < width, zeros for
  // width <= w < panel. Where A's panel has another order, its tile knows. Pairs: the steps along k
  // are uniform.
  using Pack = void (*)(Dtype dtype, P* dst, int64_t panel, int64_t width, int64_t depth,
                        const PackSource& source);
  Pack pack_rows, pack_cols;

  // Small products whole, from operands as they lie. Each sum in the order that the tile has.
  void (*small)(Dtype dtype, const SmallProducts& products) = nullptr;

  // Storage to accumulator and back, `count` elements with the given element steps.
  void (*load)(Dtype dtype, int64_t count, const void* src, int64_t step, T* dst);
  void (*store)(Dtype dtype, int64_t count, const T* src, void* dst, int64_t step);

  // Around the tiles that a thread computes in a row, where the processor has a state for them.
  void (*begin)() = nullptr;
  void (*end)() = nullptr;
};

const GemmKernels<float>& gemm_kernels_scalar(float);
const GemmKernels<double>& gemm_kernels_scalar(double);
const GemmKernels<Complex<float>>& gemm_kernels_scalar(Complex<float>);
const GemmKernels<Complex<double>>& gemm_kernels_scalar(Complex<double>);
const GemmKernels<float>& gemm_kernels_avx2(float);
const GemmKernels<double>& gemm_kernels_avx2(double);
const GemmKernels<Complex<float>>& gemm_kernels_avx2(Complex<float>);
const GemmKernels<Complex<double>>& gemm_kernels_avx2(Complex<double>);
const GemmKernels<float>& gemm_kernels_avx512(float);
const GemmKernels<double>& gemm_kernels_avx512(double);
const GemmKernels<Complex<float>>& gemm_kernels_avx512(Complex<float>);
const GemmKernels<Complex<double>>& gemm_kernels_avx512(Complex<double>);
const GemmKernels<float, BfPair>& gemm_kernels_avx512bf16();
const GemmKernels<float, BfPair>& gemm_kernels_amxbf16();

}  // namespace matcalc::cpu
