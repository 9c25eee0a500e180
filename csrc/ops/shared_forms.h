// Forms whose matrices the rows of a batch share: z[b, o] = x1[b]^T W[o] x2[b] for every row b and
// output o. nn bilinear is made of them, and so are bilinear and quadratic forms where A runs along
// batch dimensions along which the vectors do not.
#pragma once

#include <optional>

#include "contraction.h"

namespace matcalc {

struct SharedForms {
  const void *x1, *x2, *w;
  int64_t in1, in2, out;
  int64_t x1_i, x2_j;          // strides: of x1 along its entries, of x2
  int64_t w_o, w_i, w_j;       // of W
  int64_t z_o;                 // of z, or of its gradient g, along the outputs
  DimList<LoopDim> rows = {};  // the strides a of x1, s of x2 and c of z or g; b is 0
  bool symmetric = false;  // x1 is x2; of W[o] only i >= j is read, the rest is its mirror image

  int64_t row_count() const { return rows.numel(); }
};

// The forms y^T A x of a batch as such, if they are: along each dimension of the batch run either
// both vectors or A alone, and the latter dimensions step as one. `z` is of the batch's shape.
template <class Z>
std::optional<SharedForms> find_shared_forms(const Operand& y, const Operand& A, const Operand& x,
                                             const Dims& batch, const Z& z,
                                             bool symmetric = false) {
  SharedForms forms{.x1 = y.data,
                    .x2 = x.data,
                    .w = A.data,
                    .in1 = A.size(2),
                    .in2 = A.size(1),
                    .out = 1,
                    .x1_i = y.stride(1),
                    .x2_j = x.stride(1),
                    .w_o = 0,
                    .w_i = A.stride(2),
                    .w_j = A.stride(1),
                    .z_o = 0,
                    .symmetric = symmetric};
  DimList<LoopDim> outputs;
  for (int64_t d = 0; d < batch.count; ++d) {
    if (batch.sizes[d] == 1) continue;
    const int64_t along_A = batch_stride(A, 2, batch, d), along_z = batch_stride(z, 0, batch, d);
    const bool along_y = y.size(batch.count - d + 1) > 1, along_x = x.size(batch.count - d + 1) > 1;
    if (!along_y && !along_x) {
      outputs.push({.size = batch.sizes[d], .b = along_A, .c = along_z});
    } else if (along_y && along_x && along_A == 0) {
      forms.rows.push({.size = batch.sizes[d],
                       .a = batch_stride(y, 1, batch, d),
                       .s = batch_stride(x, 1, batch, d),
                       .c = along_z});
    } else {
      return std::nullopt;
    }
  }
  order_and_merge(outputs, [](const LoopDim& dim) { return dim.b; }, {&LoopDim::b, &LoopDim::c});
  if (outputs.count > 1) return std::nullopt;
  if (outputs.count == 1) {
    forms.out = outputs[0].size;
    forms.w_o = outputs[0].b;
    forms.z_o = outputs[0].c;
  }
  return forms;
}

// z = x1^T W x2 (+ bias), by the products T = x1^T W of some outputs at a time. None of the sizes
// is 0. A bias excludes rows along which x2 is repeated, for T x2 runs along these as along
// outputs.
void run_values(const Call& call, const SharedForms& forms, const Operand* bias, void* z);

// Whether a product over a generated operand, whose runs are rows of x1 or of x2, is made by tiles.
bool generated_by_tiles(const Call& call, int64_t in1, int64_t in2);

// Whether run_input_gradients beats a product for each gradient, or (`one`) for their sum.
bool input_gradients_pay(const Call& call, const SharedForms& forms, bool one);

// dx1[b, i] = sum_oj g[b, o] conj(W[o, i, j] x2[b, j]) and dx2[b, j] = sum_oi g conj(W x1), dense
// rows of in1 and in2 entries; with dx2 == nullptr their sum, in dx1, for x1 = x2.
void run_input_gradients(const Call& call, const SharedForms& forms, const void* g, void* dx1,
                         void* dx2);

}  // namespace matcalc
