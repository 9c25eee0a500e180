// What one instruction set offers the driver of integer products: the register tile, the packing
// that it reads from, and the loops of products with few vectors. One table per stored type.
#pragma once

#include <cstdint>
#include <type_traits>

namespace matcalc::cpu {

// What sums of a T are kept in: unsigned, so that they wrap, and as narrow as vectors multiply. The
// low bits of a product and of a sum do not depend on those above them, nor on the sign.
template <class T>
using IntegerSum = std::make_unsigned_t<std::conditional_t<(sizeof(T) < 2), int16_t, T>>;

template <class T>
struct IntegerKernels {
  using Sum = IntegerSum<T>;

  int mr;  // rows of the register tile, and of a packed panel of A
  int nr;  // columns of the register tile, and of a packed panel of B

  // One panel: dst[k * mr + w], of B dst[k * nr + w], = src[w * w_step + k * k_step] for w < width,
  // k < depth. The rest of the panel keeps what it holds: the tile leaves its sums out.
  using Pack = void (*)(Sum* dst, int64_t width, int64_t depth, const T* src, int64_t w_step,
                        int64_t k_step);
  Pack pack_a, pack_b;

  // c[i, j] (+)= sum_p a[i, p] b[p, j] of two panels, for i < rows <= mr, j < cols <= nr.
  void (*tile)(int64_t rows, int64_t cols, int64_t depth, const Sum* a, const Sum* b, T* c,
               int64_t c_row, int64_t c_col, bool accumulate);

  // sum_i a[i] b[i]
  Sum (*dot)(int64_t n, const T* a, const T* b);

  // c[j] += sum_i factors[i] b[i, j]
  void (*add_rows)(int64_t rows, int64_t cols, const Sum* factors, const T* b, int64_t ldb, T* c);
};

struct IntegerKernelTable {
  IntegerKernels<uint8_t> uint8;
  IntegerKernels<int8_t> int8;
  IntegerKernels<int16_t> int16;
  IntegerKernels<int32_t> int32;
  IntegerKernels<int64_t> int64;
};

const IntegerKernelTable& integer_kernels_scalar();
#if defined(__x86_64__)
const IntegerKernelTable& integer_kernels_avx2();
const IntegerKernelTable& integer_kernels_avx512();
#endif

}  // namespace matcalc::cpu
