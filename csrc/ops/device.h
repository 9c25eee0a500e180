// The one switch between devices: an op reaches its kernels through this table and nothing else.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace matcalc {

struct Kernels {
  void (*contract)(const Contraction&);
  void (*form)(const Form&);
  void (*prepare_result)(void* data, int64_t bytes);  // before its first touch; or nullptr
  bool (*tiles)(Dtype dtype);                         // see cpu::tiles; or nullptr
  bool calls_are_cheap;  // a call costs no more than some thousand multiply-adds: no launch
};

// nullptr where this build has no kernels for the device (torch's number for its type).
const Kernels* find_kernels(int32_t device_type);

}  // namespace matcalc
