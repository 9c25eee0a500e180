// The ops that this library registers with torch: every schema on one screen.
#include <torch/csrc/stable/library.h>

#include "ops/boxing.h"
#include "ops/ops.h"

#ifndef MATCALC_NAMESPACE  // of the ops; the tests build the library a second time under another
#define MATCALC_NAMESPACE matcalc_ext
#endif

STABLE_TORCH_LIBRARY(MATCALC_NAMESPACE, m) {
  m.def("matmul(Tensor a, Tensor b) -> Tensor");
  m.def(
      "matmul_backward(Tensor grad, Tensor a, Tensor b, bool need_a, bool need_b)"
      " -> (Tensor?, Tensor?)");
  m.def("linear(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def(
      "linear_backward(Tensor grad, Tensor input, Tensor weight, Tensor? bias,"
      " bool need_input, bool need_weight, bool need_bias) -> (Tensor?, Tensor?, Tensor?)");
  m.def("bilinear(Tensor y, Tensor A, Tensor x) -> Tensor");
  m.def(
      "bilinear_backward(Tensor grad, Tensor y, Tensor A, Tensor x,"
      " bool need_y, bool need_A, bool need_x) -> (Tensor?, Tensor?, Tensor?)");
  m.def(
      "bilinear_products(Tensor y, Tensor A, Tensor x, bool need_p, bool need_q)"
      " -> (Tensor, Tensor?, Tensor?)");
  m.def(
      "bilinear_products_backward(Tensor grad, Tensor y, Tensor A, Tensor x, Tensor? p, Tensor? q,"
      " bool need_y, bool need_A, bool need_x) -> (Tensor?, Tensor?, Tensor?)");
  m.def("quadratic(Tensor x, Tensor A, *, bool symmetric=False) -> Tensor");
  m.def(
      "quadratic_backward(Tensor grad, Tensor x, Tensor A, bool symmetric,"
      " bool need_x, bool need_A) -> (Tensor?, Tensor?)");
  m.def("quadratic_products(Tensor x, Tensor A, bool symmetric) -> (Tensor, Tensor)");
  m.def(
      "quadratic_products_backward(Tensor grad, Tensor x, Tensor A, Tensor? p, bool symmetric,"
      " bool need_x, bool need_A) -> (Tensor?, Tensor?)");
  m.def("nn_bilinear(Tensor input1, Tensor input2, Tensor weight, Tensor? bias=None) -> Tensor");
  m.def(
      "nn_bilinear_backward(Tensor grad, Tensor input1, Tensor input2, Tensor weight,"
      " bool need_input1, bool need_input2, bool need_weight, bool need_bias)"
      " -> (Tensor?, Tensor?, Tensor?, Tensor?)");
}

namespace matcalc {
namespace {

// The same functions serve every device: they find its kernels themselves.
void register_ops(torch::stable::detail::StableLibrary& m) {
  m.impl("matmul", box<matmul>);
  m.impl("matmul_backward", box<matmul_backward>);
  m.impl("linear", box<linear>);
  m.impl("linear_backward", box<linear_backward>);
  m.impl("bilinear", box<bilinear>);
  m.impl("bilinear_backward", box<bilinear_backward>);
  m.impl("bilinear_products", box<bilinear_products>);
  m.impl("bilinear_products_backward", box<bilinear_products_backward>);
  m.impl("quadratic", box<quadratic>);
  m.impl("quadratic_backward", box<quadratic_backward>);
  m.impl("quadratic_products", box<quadratic_products>);
  m.impl("quadratic_products_backward", box<quadratic_products_backward>);
  m.impl("nn_bilinear", box<nn_bilinear>);
  m.impl("nn_bilinear_backward", box<nn_bilinear_backward>);
}

}  // namespace
}  // namespace matcalc

STABLE_TORCH_LIBRARY_IMPL(MATCALC_NAMESPACE, CPU, m) { matcalc::register_ops(m); }
#if defined(MATCALC_CUDA)
STABLE_TORCH_LIBRARY_IMPL(MATCALC_NAMESPACE, CUDA, m) { matcalc::register_ops(m); }
#endif
