#include "form.h"

#include "contraction.h"

namespace matcalc {

bool matrix_per_item(const Operand& A, const Dims& batch) {
  for (int64_t d = 0; d < batch.count; ++d) {
    if (batch.sizes[d] > 1 && batch_stride(A, 2, batch, d) == 0) return false;
  }
  return true;
}

void set_form(Form& form, const Call& call, const Operand& y, const Operand& A, const Operand& x) {
  form.dtype = call.dtype;
  form.rows = A.size(2);
  form.cols = A.size(1);
  form.y = y.data;
  form.a = A.data;
  form.x = x.data;
  form.y_stride = y.stride(1);
  form.a_row = A.stride(2);
  form.a_col = A.stride(1);
  form.x_stride = x.stride(1);
  form.quadratic = false;
  form.symmetric = false;
  form.g = nullptr;
  form.alpha = nullptr;
  form.dy = nullptr;
  form.dx = nullptr;
  form.dy_stride = 0;
  form.dx_stride = 0;
}

void finish_form(Form& form) {
  order_and_merge(form.batch, [](const FormDim& dim) { return dim.a; },
                  {&FormDim::y, &FormDim::a, &FormDim::x, &FormDim::g, &FormDim::alpha,
                   &FormDim::dy, &FormDim::dx});
}

}  // namespace matcalc
