// Small products, most of all in batches.
#pragma once

#include "../kernels.h"

namespace matcalc::cpu {

// Computes op where it is one of those, and says whether it was. Floating dtypes.
bool contract_small(const Contraction& op);

}  // namespace matcalc::cpu
