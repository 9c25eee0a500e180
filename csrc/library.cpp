// The ops that this library registers with torch: every schema on one screen.
#include <string>

#include <torch/csrc/stable/library.h>

#include "ops/boxing.h"
#include "ops/ops.h"

#ifndef MATCALC_NAMESPACE  // of the ops; the tests build the library a second time under another
#define MATCALC_NAMESPACE matcalc_ext
#endif

namespace matcalc {
namespace {

using Library = torch::stable::detail::StableLibrary;

struct Op {
  const char* name;
  const char* signature;
  void (*boxed)(StableIValue*, uint64_t, uint64_t);
};

const Op kOps[] = {
    {"matmul", "(Tensor a, Tensor b) -> Tensor", box<matmul>},
    {"matmul_backward",
     "(Tensor grad, Tensor a, Tensor b, bool need_a=True, bool need_b=True) -> (Tensor?, Tensor?)",
     box<matmul_backward>},
    {"linear", "(Tensor input, Tensor weight, Tensor? bias=None) -> Tensor", box<linear>},
    {"linear_backward",
     "(Tensor grad, Tensor input, Tensor weight, Tensor? bias, bool need_input=True,"
     " bool need_weight=True, bool need_bias=True) -> (Tensor?, Tensor?, Tensor?)",
     box<linear_backward>},
    {"bilinear", "(Tensor y, Tensor A, Tensor x) -> Tensor", box<bilinear>},
    {"bilinear_backward",
     "(Tensor grad, Tensor y, Tensor A, Tensor x, bool need_y=True, bool need_A=True,"
     " bool need_x=True) -> (Tensor?, Tensor?, Tensor?)",
     box<bilinear_backward>},
    {"quadratic", "(Tensor x, Tensor A, *, bool symmetric=False) -> Tensor", box<quadratic>},
    {"quadratic_backward",
     "(Tensor grad, Tensor x, Tensor A, bool symmetric=False, bool need_x=True,"
     " bool need_A=True) -> (Tensor?, Tensor?)",
     box<quadratic_backward>},
    {"nn_bilinear", "(Tensor input1, Tensor input2, Tensor weight, Tensor? bias=None) -> Tensor",
     box<nn_bilinear>},
    {"nn_bilinear_backward",
     "(Tensor grad, Tensor input1, Tensor input2, Tensor weight, bool need_input1=True,"
     " bool need_input2=True, bool need_weight=True, bool need_bias=True)"
     " -> (Tensor?, Tensor?, Tensor?, Tensor?)",
     box<nn_bilinear_backward>},
};

// Below autograd there are these besides: the forward pass of a form that keeps products for its
// backward pass, and that backward pass.
const Op kInnerOps[] = {
    {"bilinear_products",
     "(Tensor y, Tensor A, Tensor x, bool need_p=True, bool need_q=True)"
     " -> (Tensor, Tensor?, Tensor?)",
     box<bilinear_products>},
    {"bilinear_products_backward",
     "(Tensor grad, Tensor y, Tensor A, Tensor x, Tensor? p, Tensor? q, bool need_y=True,"
     " bool need_A=True, bool need_x=True) -> (Tensor?, Tensor?, Tensor?)",
     box<bilinear_products_backward>},
    {"quadratic_products", "(Tensor x, Tensor A, *, bool symmetric=False) -> (Tensor, Tensor)",
     box<quadratic_products>},
    {"quadratic_products_backward",
     "(Tensor grad, Tensor x, Tensor A, Tensor? p, bool symmetric=False,"
     " bool need_x=True, bool need_A=True)"
     " -> (Tensor?, Tensor?)",
     box<quadratic_products_backward>},
};

// Calls f(name, op) for every op that is registered. An op with derivatives is there twice: under
// its name, to which matcalc_ext/ops adds kernels for autograd, autocast and transforms, and with
// a "_" before it, as what these call at the end.
template <class F>
void for_each_op(const F& f) {
  for (const Op& op : kOps) {
    f(std::string(op.name), op);
    f(std::string("_") + op.name, op);
  }
  for (const Op& op : kInnerOps) f(std::string("_") + op.name, op);
}

// The same functions serve every device: they find its kernels themselves.
void register_kernels(Library& m) {
  for_each_op([&](const std::string& name, const Op& op) { m.impl(name.c_str(), op.boxed); });
}

}  // namespace
}  // namespace matcalc

// torch 2.10's macro takes the name of its argument, not what that stands for.
#define MATCALC_LIBRARY(name, m) STABLE_TORCH_LIBRARY(name, m)

MATCALC_LIBRARY(MATCALC_NAMESPACE, m) {
  matcalc::for_each_op([&](const std::string& name, const matcalc::Op& op) {
    m.def((name + op.signature).c_str());
  });
}

STABLE_TORCH_LIBRARY_IMPL(MATCALC_NAMESPACE, CPU, m) { matcalc::register_kernels(m); }
#if defined(MATCALC_CUDA)
STABLE_TORCH_LIBRARY_IMPL(MATCALC_NAMESPACE, CUDA, m) { matcalc::register_kernels(m); }
#endif
