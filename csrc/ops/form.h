// What bilinear and quadratic share: forms whose matrix has data of its own for every batch item.
#pragma once

#include "tensor.h"

namespace matcalc {

// Whether no part of A is used by several batch items: then every item costs a pass over its own
// matrix, which the Form kernels make once; otherwise the items share a matrix product.
bool matrix_per_item(const Operand& A, const Dims& batch);

// A Form without batch dimensions, outputs or gradient: pointers, sizes and strides of y, A and x.
void set_form(Form& form, const Call& call, const Operand& y, const Operand& A, const Operand& x);

// Orders and merges the batch dimensions.
void finish_form(Form& form);

}  // namespace matcalc
