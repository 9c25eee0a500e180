// Products of a matrix with few vectors, and of two vectors: work at the speed of memory.
#pragma once

#include "../kernels.h"

namespace matcalc::cpu {

// Computes op where it is one of those, and says whether it was. Floating dtypes.
bool contract_vectors(const Contraction& op);

// The same for single dot products, or a batch of them, short enough not to be cut. Each is the sum
// that contract_vectors() makes of it.
bool contract_dots(const Contraction& op);

}  // namespace matcalc::cpu
