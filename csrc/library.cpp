// The ops that this library registers with torch, and the Python module _C.
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/stable/library.h>

#include "cpu/dispatch.h"
#include "ops/boxing.h"
#include "ops/ops.h"

#ifndef MATCALC_VERSION
#define MATCALC_VERSION "unknown"
#endif

STABLE_TORCH_LIBRARY(matcalc_ext, m) {
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
  m.def("quadratic(Tensor x, Tensor A, *, bool symmetric=False) -> Tensor");
  m.def(
      "quadratic_backward(Tensor grad, Tensor x, Tensor A, bool symmetric,"
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
  m.impl("quadratic", box<quadratic>);
  m.impl("quadratic_backward", box<quadratic_backward>);
  m.impl("nn_bilinear", box<nn_bilinear>);
  m.impl("nn_bilinear_backward", box<nn_bilinear_backward>);
}

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < cpu::kIsaCount; ++i) {
    const cpu::Isa isa = static_cast<cpu::Isa>(i);
    if (cpu::isa_supported(isa)) names.emplace_back(cpu::isa_name(isa));
  }
  return names;
}

std::string compiler_name() {
#if defined(__clang__)
  return std::string("clang ") + __clang_version__;
#elif defined(__GNUC__)
  return std::string("gcc ") + __VERSION__;
#else
  return "unknown";
#endif
}

pybind11::dict build_info() {
  pybind11::dict info;
  info["version"] = MATCALC_VERSION;
  info["compiler"] = compiler_name();
  info["cxx_standard"] = static_cast<int64_t>(__cplusplus);
  // 0xMMmm00... : major and minor are the two highest bytes.
  info["torch_target"] = std::to_string(TORCH_TARGET_VERSION >> 56) + "." +
                         std::to_string((TORCH_TARGET_VERSION >> 48) & 0xff);
  info["cuda"] = false;
  return info;
}

}  // namespace
}  // namespace matcalc

STABLE_TORCH_LIBRARY_IMPL(matcalc_ext, CPU, m) { matcalc::register_ops(m); }

PYBIND11_MODULE(_C, m) {
  m.doc() = "Importing this module registers torch.ops.matcalc_ext.";
  m.def("build_info", &matcalc::build_info,
        "How this module was built: version, compiler, cxx_standard, torch_target, cuda.");
  m.def("cpu_isas", &matcalc::supported_isas,
        "Instruction sets this build and CPU have kernels for, from slowest to fastest.");
  m.def(
      "cpu_isa", [] { return std::string(matcalc::cpu::isa_name(matcalc::cpu::isa())); },
      "The instruction set in use.");
  m.def(
      "set_cpu_isa", [](const std::string& name) { matcalc::cpu::set_isa(name.c_str()); },
      pybind11::arg("name"),
      "Use this instruction set from the next call on; \"\" returns to the default.");
}
