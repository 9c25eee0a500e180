// The gemm micro-kernels for AVX2 and FMA.
#if defined(__x86_64__)

#include <cstddef>
#include <cstring>
#include <type_traits>

#include "gemm_kernels.h"
#include "vec_avx2.h"

namespace matcalc::cpu {
namespace {

// 12 accumulators + 2 for B + 1 broadcast <= 16 ymm.
constexpr int kTileRows = 6;
constexpr int kTileVectors = 2;

#include "gemm_kernels.inc"

constexpr GemmKernels<float> kFloat = make_gemm_kernels<float>();
constexpr GemmKernels<double> kDouble = make_gemm_kernels<double>();
constexpr GemmKernels<Complex<float>> kComplexFloat = make_complex_gemm_kernels<float>();
constexpr GemmKernels<Complex<double>> kComplexDouble = make_complex_gemm_kernels<double>();

}  // namespace

const GemmKernels<float>& gemm_kernels_avx2(float) { return kFloat; }
const GemmKernels<double>& gemm_kernels_avx2(double) { return kDouble; }
const GemmKernels<Complex<float>>& gemm_kernels_avx2(Complex<float>) { return kComplexFloat; }
const GemmKernels<Complex<double>>& gemm_kernels_avx2(Complex<double>) { return kComplexDouble; }

}  // namespace matcalc::cpu

#endif
