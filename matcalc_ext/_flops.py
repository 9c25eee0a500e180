"""The floating-point operations of the ops, for `torch.utils.flop_counter.FlopCounterMode`.

Two for each multiply-add of the matrix products, as torch counts its own: a product with a vector
is one, what is done to single elements is not counted.
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from . import _ops

Shape = _ops.Shape


def _counts(name: str) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Registers the decorated function, which takes shapes in the place of tensors."""
    names = _ops.registered(name)
    return register_flop_formula([getattr(torch.ops.matcalc_ext, full) for full in names])


@_counts("matmul")
def matmul(a: Shape, b: Shape, **_: Any) -> int:
    """Y = A B: m n k."""
    return 2 * prod(_ops.matmul_shape("matmul", a, b)) * a[-1]


@_counts("matmul_backward")
def matmul_backward(
    grad: Shape, a: Shape, b: Shape, need_a: bool = True, need_b: bool = True, **_: Any
) -> int:
    """dA = g Bᴴ, dB = Aᴴ g: as much each."""
    return (need_a + need_b) * matmul(a, b)


@_counts("linear")
def linear(input: Shape, weight: Shape, bias: Shape | None = None, **_: Any) -> int:
    """Z = X Wᵀ."""
    return 2 * prod(input) * prod(weight[:-1])


@_counts("linear_backward")
def linear_backward(
    grad: Shape,
    input: Shape,
    weight: Shape,
    bias: Shape | None,
    need_input: bool = True,
    need_weight: bool = True,
    need_bias: bool = True,
    **_: Any,
) -> int:
    """dX = g W, dW = gᵀ X: as much each."""
    return (need_input + need_weight) * linear(input, weight)


def _ways(y: Shape, A: Shape, x: Shape) -> tuple[int, int, int, int]:
    """Of p = A x, of a value from p, of q = Aᵀ y and of a value from q."""
    p, q, items = _ops.product_items(y, A, x)
    m, n = A[-2:]
    return 2 * p * m * n, 2 * items * m, 2 * q * m * n, 2 * items * n


@_counts("bilinear")
def bilinear(y: Shape, A: Shape, x: Shape, **_: Any) -> int:
    """α = yᵀ (A x) or (Aᵀ y)ᵀ x, whichever takes less."""
    p, from_p, q, from_q = _ways(y, A, x)
    return min(p + from_p, q + from_q)


@_counts("bilinear_backward")
def bilinear_backward(
    grad: Shape,
    y: Shape,
    A: Shape,
    x: Shape,
    need_y: bool = True,
    need_A: bool = True,
    need_x: bool = True,
    **_: Any,
) -> int:
    """dy = g A x, dA = g y xᵀ, dx = g Aᵀ y: as much each."""
    return (need_y + need_A + need_x) * bilinear(y, A, x)


@_counts("bilinear_products")
def bilinear_products(
    y: Shape, A: Shape, x: Shape, need_p: bool = True, need_q: bool = True, **_: Any
) -> int:
    """p, q, and α from one of them."""
    p, from_p, q, from_q = _ways(y, A, x)
    return need_p * p + need_q * q + (from_p if need_p else from_q)


@_counts("bilinear_products_backward")
def bilinear_products_backward(
    grad: Shape,
    y: Shape,
    A: Shape,
    x: Shape,
    p: Shape | None,
    q: Shape | None,
    need_y: bool = True,
    need_A: bool = True,
    need_x: bool = True,
    **_: Any,
) -> int:
    """dy = g p, dx = g q; without p or q as in bilinear_backward, and so dA."""
    from_p, from_q = _ways(y, A, x)[1::2]
    made = (need_y and p is None) + need_A + (need_x and q is None)
    kept = need_y * (p is not None) * from_p + need_x * (q is not None) * from_q
    return made * bilinear(y, A, x) + kept


@_counts("quadratic")
def quadratic(x: Shape, A: Shape, **_: Any) -> int:
    """α = xᵀ (A x)."""
    return bilinear(x, A, x)


@_counts("quadratic_backward")
def quadratic_backward(
    grad: Shape,
    x: Shape,
    A: Shape,
    symmetric: bool = False,
    need_x: bool = True,
    need_A: bool = True,
    **_: Any,
) -> int:
    """dx = g (A + Aᵀ) x, dA = g x xᵀ: as much each."""
    return (need_x + need_A) * bilinear(x, A, x)


@_counts("quadratic_products")
def quadratic_products(x: Shape, A: Shape, **_: Any) -> int:
    """p = (A + Aᵀ) x, and α from it."""
    return bilinear(x, A, x)


@_counts("quadratic_products_backward")
def quadratic_products_backward(
    grad: Shape,
    x: Shape,
    A: Shape,
    p: Shape | None,
    symmetric: bool = False,
    need_x: bool = True,
    need_A: bool = True,
    **_: Any,
) -> int:
    """dx = g p; dA = g x xᵀ."""
    if p is None:
        return quadratic_backward(grad, x, A, symmetric, need_x, need_A)
    return need_A * bilinear(x, A, x) + need_x * 2 * prod(p)


@_counts("nn_bilinear")
def nn_bilinear(
    input1: Shape, input2: Shape, weight: Shape, bias: Shape | None = None, **_: Any
) -> int:
    """z_o = x₁ᵀ W_o x₂."""
    return 2 * prod(input1[:-1]) * prod(weight)


@_counts("nn_bilinear_backward")
def nn_bilinear_backward(
    grad: Shape,
    input1: Shape,
    input2: Shape,
    weight: Shape,
    need_input1: bool = True,
    need_input2: bool = True,
    need_weight: bool = True,
    need_bias: bool = True,
    **_: Any,
) -> int:
    """dx₁ = V x₂ and dx₂ = Vᵀ x₁ with V = Σ g_o W_o for both; dW_o = Σ g_o x₁ x₂ᵀ."""
    return ((need_input1 or need_input2) + need_weight) * nn_bilinear(input1, input2, weight)
