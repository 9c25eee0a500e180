// The Python module _emulated. Importing it loads the library, and so registers its ops.
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "control.h"
#include "cuda_emulation.h"

#include "../../csrc/kernels.h"

namespace matcalc::cuda::emulation {
namespace {

bool tf32 = false;

void set_order_by_name(const std::string& name) {
  if (name == "ascending") return set_order(Order::kAscending);
  if (name == "descending") return set_order(Order::kDescending);
  if (name == "shuffled") return set_order(Order::kShuffled);
  throw std::invalid_argument("there is no order " + name);
}

std::vector<std::tuple<std::string, int64_t, int>> launches() {
  std::vector<std::tuple<std::string, int64_t, int>> rows;
  for (const Launch& launch : take_launches()) {
    rows.emplace_back(launch.name, launch.blocks, launch.threads);
  }
  return rows;
}

}  // namespace
}  // namespace matcalc::cuda::emulation

PYBIND11_MODULE(_emulated, m) {
  namespace emulation = matcalc::cuda::emulation;
  m.def("set_device", &emulation::set_device);
  m.def("set_order", &emulation::set_order_by_name);
  m.def("set_tf32", [](bool allowed) { emulation::tf32 = allowed; });
  m.def("launches", &emulation::launches);
  m.def("run_basic", &emulation::run_basic);
  matcalc::cuda::set_tf32_query([] { return emulation::tf32; });
}
