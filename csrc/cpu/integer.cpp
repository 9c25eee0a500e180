// Integer contractions: plain loops. Sums wrap modulo 2^bits, as torch's do; unsigned arithmetic
// makes that defined, and the low bits of a product do not depend on the sign.
#include "integer.h"

#include <algorithm>
#include <type_traits>

#include "../offsets.h"
#include "parallel.h"
#include "scratch.h"

namespace matcalc::cpu {
namespace {

template <class T>
void contract_typed(const Contraction& op) {
  using Dim = ContractionDim;
  using Wide = std::make_unsigned_t<std::conditional_t<(sizeof(T) < 4), int32_t, T>>;
  const T* a = static_cast<const T*>(op.a);
  const T* b = static_cast<const T*>(op.b);
  T* c = static_cast<T*>(op.c);
  const int64_t rows = op.m.numel(), cols = op.n.numel(), depth = op.k.numel();
  const bool unit = uniform_step(op.n, &Dim::b, int64_t{0}) == 1;
  const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(1, cols * depth));
  // One row of C at a time: every element of C is written by one thread.
  parallel_for(0, op.batch.numel() * rows, grain, [&](int64_t begin, int64_t end) {
    Scratch& scratch = Scratch::local();
    scratch.reserve(Scratch::size_of<Wide>(cols) + 2 * Scratch::size_of<int64_t>(cols) +
                    2 * Scratch::size_of<int64_t>(depth));
    Wide* sum = scratch.take<Wide>(cols);
    int64_t* n_b = scratch.take<int64_t>(cols);
    int64_t* n_c = scratch.take<int64_t>(cols);
    int64_t* k_a = scratch.take<int64_t>(depth);
    int64_t* k_b = scratch.take<int64_t>(depth);
    offsets_of(op.n, &Dim::b, 0, cols, n_b);
    offsets_of(op.n, &Dim::c, 0, cols, n_c);
    offsets_of(op.k, &Dim::a, 0, depth, k_a);
    offsets_of(op.k, &Dim::b, 0, depth, k_b);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t item = row / rows, i = row % rows;
      const T* a_row = a + offset_of(op.batch, &Dim::a, item) + offset_of(op.m, &Dim::a, i);
      const T* b_item = b + offset_of(op.batch, &Dim::b, item);
      T* c_row = c + offset_of(op.batch, &Dim::c, item) + offset_of(op.m, &Dim::c, i);
      std::fill_n(sum, cols, Wide{0});
      for (int64_t k = 0; k < depth; ++k) {
        const Wide factor = static_cast<Wide>(a_row[k_a[k]]);
        const T* b_row = b_item + k_b[k];
        if (unit) {
          for (int64_t j = 0; j < cols; ++j) sum[j] += factor * static_cast<Wide>(b_row[j]);
        } else {
          for (int64_t j = 0; j < cols; ++j) sum[j] += factor * static_cast<Wide>(b_row[n_b[j]]);
        }
      }
      for (int64_t j = 0; j < cols; ++j) c_row[n_c[j]] = static_cast<T>(sum[j]);
    }
  });
}

}  // namespace

void contract_integer(const Contraction& op) {
  switch (op.dtype) {
    case Dtype::kUInt8:
      contract_typed<uint8_t>(op);
      break;
    case Dtype::kInt8:
      contract_typed<int8_t>(op);
      break;
    case Dtype::kInt16:
      contract_typed<int16_t>(op);
      break;
    case Dtype::kInt32:
      contract_typed<int32_t>(op);
      break;
    default:
      contract_typed<int64_t>(op);
      break;
  }
}

}  // namespace matcalc::cpu
