// What bilinear and quadratic share: forms whose matrix has data of its own for every batch item,
// and gradients that an earlier pass over A has left but for their factor g.
#pragma once

#include "tensor.h"

namespace matcalc {

// Whether no part of A is used by several batch items: then every item costs a pass over its own
// matrix, which the Form kernels make once; otherwise the items share a matrix product.
bool matrix_per_item(const Operand& A, const Dims& batch);

// A form's operands and wanted outputs; g and the outputs may be nullptr.
struct FormArguments {
  const Operand *y, *A, *x, *g = nullptr;
  const Result *alpha = nullptr, *dy = nullptr, *dA = nullptr, *dx = nullptr;
  bool quadratic = false, symmetric = false;
};

// Runs the kernel of forms with a matrix per item.
void run_form(const Call& call, const FormArguments& form, const Dims& batch);

// The batch dimensions of a product of A with a vector: 1 where neither of them runs, for there all
// items have the same product.
Dims product_batch(const Operand& A, const Operand& x, const Dims& batch);

// Whether several batch items have such a product in common. It is a matrix product's operand then.
bool is_shared(const Dims& product_batch, const Dims& batch);

// The sizes of such a product.
Dims product_dims(const Dims& product_batch, int64_t entries);

// d[..., i] = g[...] p[..., i], summed over the dimensions that d lacks: a gradient from the one
// for g = 1.
void scale_product(const Call& call, const Operand& g, const Operand& p, const Dims& batch,
                   const Result& d);

// alpha[...] = scale * sum_i conj(p[..., i]) x[..., i]: the form from the gradient for g = 1.
void value_of_product(const Call& call, const Result& p, const Operand& x, const Dims& batch,
                      double scale, const Result& alpha);

// A product that was saved must be what this call would save.
void check_product(const char* op, const Operand& p, const Call& call, const Dims& expected,
                   bool operand);

}  // namespace matcalc
