// A Python module that runs the blocked product of csrc/cpu/gemm.cpp on the kernels for AMX.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "../../../csrc/cpu/gemm.h"
#include "amx_emulation.h"

namespace {

using matcalc::Contraction;
using matcalc::Dtype;

// C[m0:m1, n0:n1] of (A * S) B (+ bias): bits of bfloat16 in A, S and B; float32, or bits, in C. A
// and S are of m's and k's dimensions, B of k's and n, C of m's and n; S and bias may be None.
void multiply(pybind11::array a, pybind11::array b, pybind11::array c, pybind11::object bias,
              int64_t m0, int64_t m1, int64_t n0, int64_t n1, pybind11::object s) {
  const auto step = [](const pybind11::array& array, int axis) {
    return static_cast<int64_t>(array.strides(axis) / array.itemsize());
  };
  Contraction op{};
  op.dtype = op.dtype_a = op.dtype_b = Dtype::kBFloat16;
  op.dtype_c = c.itemsize() == 4 ? Dtype::kFloat32 : Dtype::kBFloat16;
  op.a = a.data();
  op.b = b.data();
  op.c = c.mutable_data();
  op.scale = 1;
  if (!bias.is_none()) {
    const pybind11::array values = bias;
    op.bias = values.data();
    op.bias_stride = step(values, 0);
  }
  pybind11::array scale;
  if (!s.is_none()) {
    scale = s;
    op.s = scale.data();
  }
  const auto step_of_s = [&](int axis) { return op.s == nullptr ? 0 : step(scale, axis); };
  const int m_dims = static_cast<int>(c.ndim()) - 1, k_dims = static_cast<int>(b.ndim()) - 1;
  for (int d = 0; d < m_dims; ++d) {
    op.m.push({a.shape(d), step(a, d), step_of_s(d), 0, 0, step(c, d)});
  }
  for (int d = 0; d < k_dims; ++d) {
    op.k.push({b.shape(d), step(a, m_dims + d), step_of_s(m_dims + d), step(b, d), 0, 0});
  }
  op.n.push({b.shape(k_dims), 0, 0, step(b, k_dims), 0, step(c, m_dims)});
  const matcalc::cpu::Product<float, matcalc::cpu::BfPair> product(
      op, matcalc::cpu::gemm_kernels_amxbf16(), false);
  product.compute(0, m0, m1, n0, n1);
}

}  // namespace

PYBIND11_MODULE(_amx, m) {
  m.def("multiply", multiply);
  m.def("products", amx_emulation::products, "Tile products since the last call.");
  m.def("configured", amx_emulation::configured);
}
