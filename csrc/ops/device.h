// The one switch between devices: an op reaches its kernels through this table and nothing else.
#pragma once

#include <cstdint>

#include "../kernels.h"

namespace matcalc {

struct Kernels {
  void (*contract)(const Contraction&);
  void (*form)(const Form&);
  void (*form_gradients)(const Form&);
  // Where the device keeps a 1 of this dtype: the second operand of a plain sum.
  const void* (*one)(Dtype);
};

// nullptr where this build has no kernels for the device (torch's number for its type).
const Kernels* find_kernels(int32_t device_type);

}  // namespace matcalc
