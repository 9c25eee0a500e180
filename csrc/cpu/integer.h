#pragma once

#include "../kernels.h"

namespace matcalc::cpu {

// Contractions of integers: no scale operand, bias, fold or factor (matmul alone takes integers).
void contract_integer(const Contraction& op);

}  // namespace matcalc::cpu
