// Which instruction set the CPU kernels run on: the best one the host has, unless the environment
// variable MATCALC_CPU_ISA or set_isa() names another. Read wherever kernels are chosen: all of one
// kind take and give the same, whichever it is.
#pragma once

#include "processor.h"

namespace matcalc::cpu {

const char* isa_name(Isa isa);  // "scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16"
Isa isa();                      // the one in use; throws if MATCALC_CPU_ISA cannot be met
void set_isa(
    const char* name);  // "" returns to the default; throws on an unknown or unsupported name

}  // namespace matcalc::cpu
