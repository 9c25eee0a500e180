// The ops as the dispatcher calls them. Their schemas are in library.cpp.
#pragma once

#include <tuple>

#include "tensor.h"

namespace matcalc {

// One gradient, or None, for each input.
using Gradients2 = std::tuple<OptionalTensor, OptionalTensor>;
using Gradients3 = std::tuple<OptionalTensor, OptionalTensor, OptionalTensor>;
using Gradients4 = std::tuple<OptionalTensor, OptionalTensor, OptionalTensor, OptionalTensor>;

Tensor matmul(const Tensor& a, const Tensor& b);
Gradients2 matmul_backward(const Tensor& grad, const Tensor& a, const Tensor& b, bool need_a,
                           bool need_b);

Tensor linear(const Tensor& input, const Tensor& weight, const OptionalTensor& bias);
Gradients3 linear_backward(const Tensor& grad, const Tensor& input, const Tensor& weight,
                           const OptionalTensor& bias, bool need_input, bool need_weight,
                           bool need_bias);

Tensor bilinear(const Tensor& y, const Tensor& A, const Tensor& x);
Gradients3 bilinear_backward(const Tensor& grad, const Tensor& y, const Tensor& A, const Tensor& x,
                             bool need_y, bool need_A, bool need_x);

std::tuple<Tensor, OptionalTensor, OptionalTensor> bilinear_products(const Tensor& y,
                                                                     const Tensor& A,
                                                                     const Tensor& x, bool need_p,
                                                                     bool need_q);
Gradients3 bilinear_products_backward(const Tensor& grad, const Tensor& y, const Tensor& A,
                                      const Tensor& x, const OptionalTensor& p,
                                      const OptionalTensor& q, bool need_y, bool need_A,
                                      bool need_x);

Tensor quadratic(const Tensor& x, const Tensor& A, bool symmetric);
Gradients2 quadratic_backward(const Tensor& grad, const Tensor& x, const Tensor& A, bool symmetric,
                              bool need_x, bool need_A);

std::tuple<Tensor, Tensor> quadratic_products(const Tensor& x, const Tensor& A, bool symmetric);
Gradients2 quadratic_products_backward(const Tensor& grad, const Tensor& x, const Tensor& A,
                                       const OptionalTensor& p, bool symmetric, bool need_x,
                                       bool need_A);

Tensor nn_bilinear(const Tensor& input1, const Tensor& input2, const Tensor& weight,
                   const OptionalTensor& bias);
Gradients4 nn_bilinear_backward(const Tensor& grad, const Tensor& input1, const Tensor& input2,
                                const Tensor& weight, bool need_input1, bool need_input2,
                                bool need_weight, bool need_bias);

}  // namespace matcalc
