// In the place of csrc/cpu/processor.cpp: a processor that has what is emulated. AVX2, which the
// emulation runs on, is left out: the library proper has its kernels.
#include "../../../csrc/cpu/processor.h"

namespace matcalc::cpu {

bool isa_supported(Isa isa) { return isa != Isa::kAvx2; }

}  // namespace matcalc::cpu
