// The gemm micro-kernels for AVX-512.
#if defined(__x86_64__)

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "gemm_kernels.h"
#include "vec_avx512.h"

namespace matcalc::cpu {
namespace {

// 24 accumulators + 3 for B + 1 broadcast <= 32 zmm; with 11 loads for 24 multiply-adds the
// load ports are idle half of the time.
constexpr int kTileRows = 8;
constexpr int kTileVectors = 3;

#include "gemm_kernels.inc"

constexpr GemmKernels<float> kFloat = make_gemm_kernels<float>();
constexpr GemmKernels<double> kDouble = make_gemm_kernels<double>();
constexpr GemmKernels<Complex<float>> kComplexFloat = make_complex_gemm_kernels<float>();
constexpr GemmKernels<Complex<double>> kComplexDouble = make_complex_gemm_kernels<double>();

}  // namespace

const GemmKernels<float>& gemm_kernels_avx512(float) { return kFloat; }
const GemmKernels<double>& gemm_kernels_avx512(double) { return kDouble; }
const GemmKernels<Complex<float>>& gemm_kernels_avx512(Complex<float>) { return kComplexFloat; }
const GemmKernels<Complex<double>>& gemm_kernels_avx512(Complex<double>) { return kComplexDouble; }

}  // namespace matcalc::cpu

#endif
