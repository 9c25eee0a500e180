// What the drivers of every device do with lists of dimensions: from positions to offsets in an
// operand, and the transposed product; how many parts of a size make a whole.
#pragma once

#include <algorithm>
#include <cstdint>
#include <utility>

#include "kernels.h"

namespace matcalc {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t step) { return ceil_div(a, step) * step; }

// The last dimension; one of a single position where there is none.
template <class D>
D innermost(const DimList<D>& dims) {
  D single{};
  single.size = 1;
  return dims.count == 0 ? single : dims[dims.count - 1];
}

// Where position `index` (last dimension fastest) lies in the operand that `stride` names.
template <class D>
int64_t offset_of(const DimList<D>& dims, int64_t D::* stride, int64_t index) {
  int64_t offset = 0;
  for (int i = dims.count - 1; i > 0; --i) {
    const int64_t rest = index / dims[i].size;
    offset += (index - rest * dims[i].size) * (dims[i].*stride);
    index = rest;
  }
  return dims.count == 0 ? offset : offset + index * (dims[0].*stride);
}

// The offsets of positions [begin, end), into out[0 ...].
template <class D>
void offsets_of(const DimList<D>& dims, int64_t D::* stride, int64_t begin, int64_t end,
                int64_t* out) {
  const D inner = innermost(dims);
  const int64_t size = inner.size, step = inner.*stride;
  while (begin < end) {  // one run along the innermost dimension at a time
    const int64_t run = std::min(end - begin, size - begin % size);
    int64_t offset = offset_of(dims, stride, begin);
    for (int64_t i = 0; i < run; ++i, offset += step) *out++ = offset;
    begin += run;
  }
}

// The one step between consecutive positions, or `none` where there is no such number.
template <class D>
int64_t uniform_step(const DimList<D>& dims, int64_t D::* stride, int64_t none) {
  if (dims.count == 0) return 0;
  for (int i = 0; i + 1 < dims.count; ++i) {
    if (dims[i].*stride != dims[i + 1].*stride * dims[i + 1].size) return none;
  }
  return dims[dims.count - 1].*stride;
}

// The stride along a list of one dimension, or none.
template <class D>
int64_t step_of(const DimList<D>& dims, int64_t D::* stride) {
  return dims.count == 0 ? 0 : dims[0].*stride;
}

// Dimensions of m or n that are not the innermost become batch dimensions: the depth is the same.
inline void split_outer(DimList<ContractionDim>& dims, DimList<ContractionDim>& batch) {
  for (int i = 0; i + 1 < dims.count; ++i) batch.push(dims[i]);
  if (dims.count > 1) {
    dims[0] = dims[dims.count - 1];
    dims.count = 1;
  }
}

// C^T = B^T A^T: A and B, m and n exchanged. A bias then runs along m.
inline void transpose(Contraction& op) {
  std::swap(op.a, op.b);
  std::swap(op.dtype_a, op.dtype_b);
  std::swap(op.conj_a, op.conj_b);
  std::swap(op.m, op.n);
  for (DimList<ContractionDim>* list : {&op.batch, &op.m, &op.n, &op.k}) {
    for (int i = 0; i < list->count; ++i) {
      std::swap(list->items[i].a, list->items[i].b);
      list->items[i].b2 = list->items[i].b;
    }
  }
}

}  // namespace matcalc
