// The seam between the tensor side (csrc/ops) and the kernels (csrc/cpu, csrc/cuda): plain structs
// of pointers, sizes and strides. Strides count elements, never bytes. Nothing here knows torch.
#pragma once

#include <cstdint>

namespace matcalc {

enum class Dtype : int32_t {
  kFloat64,
  kFloat32,
  kBFloat16,
  kFloat16,
  kComplex64,
  kComplex128,
  kUInt8,
  kInt8,
  kInt16,
  kInt32,
  kInt64,
};

constexpr bool is_complex(Dtype dtype) {
  return dtype == Dtype::kComplex64 || dtype == Dtype::kComplex128;
}
constexpr bool is_integer(Dtype dtype) { return dtype >= Dtype::kUInt8; }
constexpr int64_t dtype_size(Dtype dtype) {
  constexpr int64_t sizes[] = {8, 4, 2, 2, 8, 16, 1, 1, 2, 4, 8};
  return sizes[static_cast<int32_t>(dtype)];
}

// Terms of a sum that a tile of bfloat16 numbers takes at once.
constexpr int64_t kTileRun = 32;

// In the place of a stride: the step between consecutive positions is not one number.
constexpr int64_t kNoStep = INT64_MIN;

// torch allows 64 dimensions; an op adds at most three of its own (m, n, k).
constexpr int kMaxDims = 68;

template <class T>
struct DimList {
  int count = 0;
  T items[kMaxDims];

  DimList() = default;
  DimList(const DimList& other) { *this = other; }
  DimList& operator=(const DimList& other) {  // copies what is used, not the whole array
    count = other.count;
    for (int i = 0; i < count; ++i) items[i] = other.items[i];
    return *this;
  }

  void push(const T& item) { items[count++] = item; }
  T& operator[](int i) { return items[i]; }
  const T& operator[](int i) const { return items[i]; }
  const T* begin() const { return items; }
  const T* end() const { return items + count; }
  int64_t numel() const {
    int64_t product = 1;
    for (int i = 0; i < count; ++i) product *= items[i].size;
    return product;
  }
};

// ---------------------------------------------------------------------------------------------
// Contraction: C = bias + scale * sum over k of (A * S) B, with every index made of any number of
// dimensions.
//
//   C[batch, m, n] = bias[n] + scale * sum_k  A[batch, m, k] * S[batch, m, k] * B[batch, k, n]
//
// One loop dimension belongs to one of four lists, by which operands it runs through:
//   batch: A or S, B and C     m: A or S, and C     n: B and C     k: not C (it is summed over)
// A stride of 0 repeats an operand along the dimension: broadcasting is never materialised, and a
// gradient of a broadcast operand is summed by listing the broadcast dimension under k.
struct ContractionDim {
  int64_t size;
  int64_t a;   // stride in A
  int64_t s;   // stride in S, 0 where S is absent
  int64_t b;   // stride in B
  int64_t b2;  // stride in B transposed; read by the folds only
  int64_t c;   // stride in C, 0 in the k list
};

// What stands for B when B is the square matrix A of a quadratic form: the innermost n dimension
// runs over its rows and the innermost k dimension over its columns with the strides b, the other
// way round with the strides b2 (every other dimension has b2 == b).
enum class Fold : int32_t {
  kNone,          // A[n, k]
  kAddTranspose,  // A[n, k] + A[k, n]
  kSymmetric,     // n >= k ? A[n, k] : A[k, n], so that only the lower triangle is read
};

struct Contraction {
  // Storage of each operand. All the same, but that beside bfloat16 or float16 any of A, B and C
  // may be float32: an intermediate of a low-precision op that must not be rounded. S and bias are
  // stored as `dtype`; where S is present, so is A.
  Dtype dtype, dtype_a, dtype_b, dtype_c;
  const void* a;  // nullptr: 1 everywhere, so that C is a plain sum of B
  const void* s;  // nullptr: no scale operand
  const void* b;
  const void* bias;  // nullptr: none. Runs along the single n dimension with stride bias_stride.
  void* c;           // written, never read; dimensions never overlap
  int64_t bias_stride;
  bool conj_a, conj_s, conj_b;  // read the operand conjugated (complex dtypes)
  Fold fold;
  double scale;    // multiplies the sum (not the bias); 1 unless a formula carries a constant
  int32_t device;  // torch's index of the device among those of its type
  // Within each list the last dimension is the innermost. Sizes are at least 1 in batch, m and n
  // (a size of 0 means no output: the op returns before this); a size of 0 in k leaves the bias,
  // and A and B are then not read. Dimensions of size 1 are left out, except the n dimension of a
  // bias and the row and column dimensions of a fold: those are always there.
  DimList<ContractionDim> batch, m, n, k;
};

// ---------------------------------------------------------------------------------------------
// Form: one bilinear or quadratic form per batch item, each with a matrix A of its own, so the
// bytes of A are the cost and every kernel reads A at most once.
//
//   alpha = y^T A x     dy = g * A x     da = g * y x^T     dx = g * A^T y
//                                         (complex: A, x, y conjugated in the three gradients)
// Any of the four outputs may be wanted, in any combination; da alone does not read A.
// Quadratic: y and x are the same vector; its gradient is one, dx = g * (A + A^T) x, dy = nullptr.
// Symmetric: only the lower triangle (row >= column) of A is read; alpha = x^T A x, dx = 2 g A x.
struct FormDim {
  int64_t size;
  int64_t y, a, x, g, alpha, dy, da, dx;  // strides; 0 repeats an input. Outputs never overlap.
};

struct Form {
  Dtype dtype;
  Dtype dtype_d;       // of dy and dx: `dtype`, or float32 beside bfloat16 and float16
  int64_t rows, cols;  // A is [rows, cols], y is [rows], x is [cols]
  const void *y, *a, *x;
  int64_t y_stride, a_row, a_col, x_stride;
  bool quadratic, symmetric;  // symmetric implies quadratic
  const void* g;              // of the gradients: one number per batch item, or nullptr for 1
  void* alpha;                // one number per batch item; nullptr where not wanted, as the next
  void *dy, *da, *dx;         // da is contiguous in each item: [rows, cols]
  int64_t dy_stride, dx_stride;
  DimList<FormDim> batch;
  int32_t device;  // as above
};

namespace cpu {

// Sums of integers wrap as torch's do; Forms take no integers.
void contract(const Contraction& op);
void form(const Form& op);
// Whether tiles make the products of this dtype, also those with a generated operand S whose runs
// along the depth are multiples of kTileRun. Making that operand is the lesser part of them.
bool tiles(Dtype dtype);
// Called with a fresh result before its first touch.
void prepare_result(void* data, int64_t bytes);

}  // namespace cpu

#if defined(MATCALC_CUDA)
namespace cuda {

void contract(const Contraction& op);
void form(const Form& op);

// Who says whether float32 products may be rounded to TF32 (torch.backends.cuda.matmul's
// fp32_precision). Until it is set, they may not.
void set_tf32_query(bool (*query)());

}  // namespace cuda
#endif
}  // namespace matcalc
