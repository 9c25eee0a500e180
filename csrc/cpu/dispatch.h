// Which instruction set the CPU kernels run on: the best one the host has, unless the environment
// variable MATCALC_CPU_ISA or set_isa() names another. Read once per call of an op.
#pragma once

namespace matcalc::cpu {

// From slowest to fastest. kScalar is portable C++ in 16-byte vectors that the compiler lowers to
// whatever the target's baseline has (SSE2, NEON or plain scalar code).
// kAvx512Bf16 and kAmxBf16 are kAvx512 with a gemm of their own for bfloat16.
enum class Isa : int { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };
constexpr int kIsaCount = 5;

const char* isa_name(Isa isa);  // "scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16"
bool isa_supported(Isa isa);    // by this binary and this host
Isa isa();                      // the one in use; throws if MATCALC_CPU_ISA cannot be met
void set_isa(
    const char* name);  // "" returns to the default; throws on an unknown or unsupported name

}  // namespace matcalc::cpu
