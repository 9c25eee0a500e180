// Products of a matrix with few vectors, and of two vectors: work at the speed of memory.
#pragma once

#include "../kernels.h"

namespace matcalc::cpu {

// Computes op where it is one of those, and says whether it was. Floating dtypes.
bool contract_vectors(const Contraction& op);

}  // namespace matcalc::cpu
