// The instruction sets that there are kernels for, and which of them the host has.
#pragma once

namespace matcalc::cpu {

// From slowest to fastest. kScalar is portable C++ in 16-byte vectors that the compiler lowers to
// whatever the target's baseline has (SSE2, NEON or plain scalar code).
// kAvx512Bf16 and kAmxBf16 are kAvx512 with a gemm of their own for bfloat16.
enum class Isa : int { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmxBf16 };
constexpr int kIsaCount = 5;

bool isa_supported(Isa isa);  // by this binary and this host

}  // namespace matcalc::cpu
