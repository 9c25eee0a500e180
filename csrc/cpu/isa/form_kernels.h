// The table of micro-kernels for level-2 work, one per instruction set: what a form (form.cpp) and
// a product with few vectors (vector.cpp) are made of.
#pragma once

#include <cstdint>

#include "../../kernels.h"

namespace matcalc::cpu {

// The vectors that a matrix meets, each an Acc [rows] or [cols] and contiguous: `count` of each, as
// far apart as ld_rows and ld_cols say. Either p or q may be nullptr, not both; with both count
// is 1. y is read where q is wanted, x where p is.
struct VectorGroup {
  int64_t count;
  const void *y, *x;
  void *p, *q;
  int64_t ld_rows, ld_cols;
};

// A run of `count` small forms, each operand as many elements after the one before as its step
// says. A row of A fits in kSmallVectors registers; the vectors and their gradients are contiguous.
struct SmallForms {
  int64_t count, rows, cols, lda;
  const void *y, *a, *x, *g;   // T [rows], [rows, cols], [cols], one; g may be nullptr for 1
  void *alpha, *dy, *da, *dx;  // each may be nullptr; as in a Form
  int64_t y_step, a_step, x_step, g_step, alpha_step, dy_step, da_step, dx_step;
  bool quadratic;  // y is x, and dx is all of its gradient
  bool wide;       // dy and dx are Acc
};
constexpr int64_t kSmallVectors = 2;
constexpr int64_t kSmallRows = 64;

// For one dtype. T is the stored type and Acc the type that sums are kept in: T itself, or float
// for bf16 and f16. Vectors named Acc are contiguous. Strides count elements of T.
struct FormKernelSet {
  int64_t item_bytes;  // of a T
  int64_t acc_bytes;   // of an Acc

  // to[i] = from[i * stride], conjugated where asked
  void (*gather)(const void* from,  // T [n], stride
                 int64_t stride, int64_t n, bool conj,
                 void* to);  // Acc [n]

  // to[i, j] = a[i * row + j * col]
  void (*pack)(const void* a,  // T [rows, cols], strides row and col
               int64_t row, int64_t col, int64_t rows, int64_t cols,
               void* to);  // T [rows, cols], contiguous

  // *sum += y^T A x
  void (*value)(const void* a,  // T [rows, cols], rows lda apart
                int64_t lda, int64_t rows, int64_t cols,
                const void* y,  // Acc [rows]
                const void* x,  // Acc [cols]
                void* sum);     // Acc

  // p += A x, q += A^T y for each vector of the group, in one pass over A for up to four of them.
  void (*products)(const void* a,  // T [rows, cols], rows lda apart
                   int64_t lda, int64_t rows, int64_t cols, const VectorGroup& vectors);

  // sums[i] += a[i] . b[i], or with the conjugate of b: each the same sum as `products` makes of a
  // row and a vector.
  void (*row_dots)(const void* a,  // T [rows, cols], rows lda apart
                   int64_t lda,
                   const void* b,  // T [rows, cols], rows ldb apart
                   int64_t ldb, bool conj_b, int64_t rows, int64_t cols,
                   void* sums);  // Acc [rows]
  int64_t dot_cols;              // the most columns

  // Everything of small forms, item by item in registers.
  void (*small)(const SmallForms& forms);
  int64_t small_cols;  // the widest of them; 0 where there is no such kernel: complex

  // The diagonal tile of a symmetric A, of which the lower triangle is read.
  // sums[0] += the diagonal's part of x^T A x; sums[1] += the part of the triangle off it.
  void (*triangle_value)(const void* a,  // T [n, n], rows lda apart; n <= kFormTile
                         int64_t lda, int64_t n,
                         const void* x,  // Acc [n]
                         void* sums);    // Acc [2]
  // sum += A x
  void (*triangle_products)(const void* a,  // as above
                            int64_t lda, int64_t n,
                            const void* x,  // Acc [n]
                            void* sum);     // Acc [n]

  // to += from
  void (*add)(const void* from, int64_t n, void* to);  // Acc [n]

  // *sum += y^T x
  void (*dot)(const void* y,  // Acc [n]
              const void* x,  // Acc [n]
              int64_t n,
              void* sum);  // Acc

  // to[i, j] = g * y[i] x[i * x_step + j], or g times the conjugate of that, rounded once; g is a
  // T, or nullptr for 1. With a step of 0 an outer product, else rows times numbers.
  void (*outer)(const void* y,  // Acc [rows]
                const void* x,  // Acc [cols] or [rows, cols], rows x_step apart
                int64_t x_step, int64_t rows, int64_t cols, const void* g, bool conj,
                void* to,  // T [rows, cols], rows ld apart
                int64_t ld);

  // to[i * stride] = scale * g * sum[i], rounded once; g is a T, or nullptr for 1.
  void (*finish)(const void* sum,  // Acc [n]
                 int64_t n, const void* g, double scale,
                 bool conj,  // of the sum
                 bool wide,  // `to` is an Acc
                 void* to,   // T or Acc [n], stride
                 int64_t stride);
};

// Rows and columns of a diagonal tile: small, because it is read one short row at a time (at
// n = 4096 the tiles are 1.6 % of the triangle).
constexpr int64_t kFormTile = 32;

constexpr int kFormDtypes = 6;  // the first six of Dtype: every one that is not an integer

struct FormKernels {
  FormKernelSet of[kFormDtypes];  // indexed by Dtype
};

// Those of the instruction set in use, for any dtype that is not an integer.
const FormKernelSet& form_kernels(Dtype dtype);

const FormKernels& form_kernels_scalar();
#if defined(__x86_64__)
const FormKernels& form_kernels_avx2();
const FormKernels& form_kernels_avx512();
#endif

}  // namespace matcalc::cpu
