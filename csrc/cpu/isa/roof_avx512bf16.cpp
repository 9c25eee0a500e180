// The limit of AVX512-BF16: dot products of pairs of bfloat16 numbers.
#if defined(__x86_64__)
#include "vec_avx512.h"
#include "vec_pairs.h"

// After the vectors that it is written in.
#include "roof_kernels.inc"

namespace matcalc::cpu {
namespace {

double pair_products(int64_t steps) {
  const BfPair half = {unknown<uint32_t>(0x3f003f00)};  // 0.5 and 0.5
  return chains<float>(steps, Vec<BfPair>::set1(half), Vec<BfPair>::set1(half));
}

constexpr RoofArithmetic kPairs = {2 * kFlops<float>, pair_products};

}  // namespace

const RoofArithmetic& roof_pairs_avx512bf16() { return kPairs; }

}  // namespace matcalc::cpu
#endif
