// The Python module _C: how this library was built, and which kernels it uses. Importing it loads
// the library, and so registers the ops; no tensor passes through it.
#include <string>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cpu/dispatch.h"
#include "cpu/roof.h"
#include "cpu/scratch.h"
#include "kernels.h"

#ifndef MATCALC_VERSION
#define MATCALC_VERSION "unknown"
#endif

namespace matcalc {
namespace {

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
  // 0xMMmm00... : major and minor are the two highest bytes.
  info["torch_target"] = std::to_string(TORCH_TARGET_VERSION >> 56) + "." +
                         std::to_string((TORCH_TARGET_VERSION >> 48) & 0xff);
#if defined(MATCALC_CUDA)
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

pybind11::dict cpu_roofs() {
  cpu::Roofs measured = {};
  {
    const pybind11::gil_scoped_release release;
    measured = cpu::measure_roofs();
  }
  pybind11::dict roofs;
  roofs["float32"] = measured.float32;
  roofs["float64"] = measured.float64;
  if (measured.bfloat16 > 0) roofs["bfloat16"] = measured.bfloat16;
  roofs["read"] = measured.read;
  roofs["copy"] = measured.copy;
  return roofs;
}

#if defined(MATCALC_CUDA)
// torch keeps the switch for TF32 behind Python only; its own products ask it at each call too.
pybind11::handle precision_getter;
bool tf32_allowed() {
  const pybind11::gil_scoped_acquire gil;
  return precision_getter("cuda", "matmul").cast<std::string>() == "tf32";
}
#endif

}  // namespace
}  // namespace matcalc

PYBIND11_MODULE(_C, m) {
  m.doc() = "Importing this module registers torch.ops.matcalc_ext.";
  m.def("build_info", &matcalc::build_info,
        "How this module was built: version, compiler, torch_target, cuda.");
  m.def("cpu_isas", &matcalc::supported_isas,
        "Instruction sets this build and CPU have kernels for, from slowest to fastest.");
  m.def(
      "cpu_isa", [] { return std::string(matcalc::cpu::isa_name(matcalc::cpu::isa())); },
      "The instruction set in use.");
  m.def(
      "set_cpu_isa", [](const std::string& name) { matcalc::cpu::set_isa(name.c_str()); },
      pybind11::arg("name"),
      "Use this instruction set from the next call on; \"\" returns to the default.");
  m.def("cpu_roofs", &matcalc::cpu_roofs,
        "Measures this machine's limits with the threads and the instruction set in use: flops per "
        "second of float32, float64 and, where there is an instruction for it, bfloat16; bytes per "
        "second of read and copy.");
  m.def("cpu_scratch_bytes", &matcalc::cpu::Scratch::total,
        "Bytes of working memory that the threads keep from call to call, together.");
#if defined(MATCALC_CUDA)
  const pybind11::module_ torch = pybind11::module_::import("torch._C");
  matcalc::precision_getter = pybind11::object(torch.attr("_get_fp32_precision_getter")).release();
  matcalc::cuda::set_tf32_query(&matcalc::tf32_allowed);
#endif
}
