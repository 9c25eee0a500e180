# mypy: disable-error-code="override"
"""The quadratic form α = xᵀ A x."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from .. import _ops
from ._dispatch import backward_route, register
from ._errors import refuse, symbolic
from ._function import (
    Grads,
    add,
    autocast,
    autocast_active,
    backward_traced,
    by_formulas,
    fast_apply,
    forward_rule,
    grad_enabled,
    is_batched,
    needed,
    save,
    tangents,
    traced,
    transforms_active,
    unread,
    unwrap,
    worth_keeping,
)
from ._vmap import any_batched, batch_first, legacy_vmap, logical_shape, sample_shapes
from .bilinear import apply_bilinear_backward
from .matmul import apply_matmul

_forward = _ops.entry("quadratic")
_backward = _ops.entry("quadratic_backward")
_products = _ops.entry("quadratic_products")
_products_backward = _ops.entry("quadratic_products_backward")


def _value(x: Tensor, A: Tensor, symmetric: bool) -> Tensor:
    if symmetric is False:  # the default
        return _forward(x, A)  # type: ignore[no-any-return]
    return _forward(x, A, symmetric=symmetric)  # type: ignore[no-any-return]


class Quadratic(Function):
    """α = xᵀ A x; for a gradient g of α: dx = g (A + Aᵀ) x, dA = g x xᵀ.

    With `symmetric`, A stands for the symmetric matrix S that its lower triangle gives, and
    dx = 2 g S x. What stands in A's place in a derivative (a gradient, a tangent) is a matrix like
    any other, all of it read: α changes by xᵀ Ȧ x.
    """

    @staticmethod
    def forward(x: Tensor, A: Tensor, symmetric: bool) -> Tensor:
        return _value(x, A, symmetric)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, A, ctx.symmetric = inputs
        save(ctx, x, A)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Any:
        if grad is None:
            return None, None, None
        x, A, *kept = ctx.saved_tensors
        need_x, need_A, _ = needed(ctx, grad, x, A)
        if by_formulas():
            return *apply_quadratic_backward(grad, x, A, ctx.symmetric, need_x, need_A), None
        if kept and not is_batched(grad):
            return *_products_backward(grad, x, A, *kept, ctx.symmetric, need_x, need_A), None
        if ctx.symmetric or not need_x or not need_A:
            return *_backward(grad, x, A, ctx.symmetric, need_x, need_A), None
        return *_backward(grad, x, A), None

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, primals: list[Tensor], dx: Tensor | None, dA: Tensor | None, _: None) -> Any:
        """ẋᵀ (A + Aᵀ) x + xᵀ Ȧ x."""
        x, A = primals
        return add(
            None if dx is None else _along(dx, x, A, ctx.symmetric),
            None if dA is None else apply_quadratic(x, dA),
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], x: Tensor, A: Tensor, symmetric: bool
    ) -> tuple[Tensor, int]:
        x_dim, A_dim = in_dims[:2]
        shapes = logical_shape(x, x_dim), logical_shape(A, A_dim)
        rank = len(_ops.quadratic_shape("quadratic", *shapes))
        x, A = batch_first(x, x_dim, 1, rank), batch_first(A, A_dim, 2, rank)
        return apply_quadratic(x, A, symmetric), 0


def _along(p: Tensor, x: Tensor, A: Tensor, symmetric: bool) -> Tensor:
    """The derivative pᵀ (A + Aᵀ) x of the form along p, in one pass over A."""
    batch = _ops.broadcast_batch("quadratic", ("x", x.shape, 1), ("A", A.shape, 2))
    # The gradient for g = 1. Expanded, so that it is not summed over the batch dimensions.
    dx = apply_quadratic_backward(
        x.new_ones(()).expand(batch), x.expand(*batch, x.shape[-1]), A, symmetric, True, False
    )[0]
    assert dx is not None
    return apply_matmul(p.unsqueeze(-2), dx.conj().unsqueeze(-1)).squeeze(-1).squeeze(-1)


class QuadraticBackward(Function):
    """(g, x, A) -> (g (A + Aᵀ) x, g x xᵀ), each differentiable in turn."""

    @staticmethod
    def forward(
        grad: Tensor, x: Tensor, A: Tensor, symmetric: bool, need_x: bool, need_A: bool
    ) -> Grads:
        return _backward(grad, x, A, symmetric, need_x, need_A)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs[:3])
        ctx.symmetric = inputs[3]
        ctx.wanted = inputs[4:]

    @staticmethod
    def backward(ctx: Any, p: Tensor | None, P: Tensor | None) -> Any:
        """The gradients for gradients (p, P) of (dx, dA).

        dg = pᵀ(A + Aᵀ)x + xᵀPx, dx = g (A + Aᵀ) p + g (P + Pᵀ) x, dA = g (x pᵀ + p xᵀ).
        """
        g, x, A = ctx.saved_tensors
        need_g, need_x, need_A = needed(ctx, g, x, A)[:3]
        dg = dx = dA = None
        if p is not None:
            dg = _along(p, x, A, ctx.symmetric) if need_g else None
            if need_x:
                dx = apply_quadratic_backward(g, p, A, ctx.symmetric, True, False)[0]
            if need_A:
                dA = _outer(g, x, p, A)
        if P is not None:
            dg = add(dg, apply_quadratic(x, P)) if need_g else None
            if need_x:
                dx = add(dx, apply_quadratic_backward(g, x, P, False, True, False)[0])
        return dg, dx, dA, None, None, None

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        primals: list[Tensor],
        dg: Tensor | None,
        dx: Tensor | None,
        dA: Tensor | None,
        *_: None,
    ) -> Grads:
        """The tangents of (dx, dA).

        ġ (A + Aᵀ) x + g (A + Aᵀ) ẋ + g (Ȧ + Ȧᵀ) x and ġ x xᵀ + g (x ẋᵀ + ẋ xᵀ).
        """
        g, x, A = primals
        need_x, need_A = ctx.wanted
        terms: list[Grads] = []
        if dg is not None:
            terms.append(apply_quadratic_backward(dg, x, A, ctx.symmetric, need_x, need_A))
        if dx is not None:
            if need_x:
                terms.append(apply_quadratic_backward(g, dx, A, ctx.symmetric, True, False))
            if need_A:
                terms.append((None, _outer(g, x, dx, A)))
        if dA is not None and need_x:
            terms.append(apply_quadratic_backward(g, x, dA, False, True, False))
        return tangents(terms, x if need_x else None, A if need_A else None)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        x: Tensor,
        A: Tensor,
        symmetric: bool,
        need_x: bool,
        need_A: bool,
    ) -> Any:
        size = info.batch_size
        g_dim, x_dim, A_dim = in_dims[:3]
        shapes = logical_shape(x, x_dim), logical_shape(A, A_dim)
        rank = len(_ops.quadratic_shape("quadratic_backward", *shapes))
        grads = apply_quadratic_backward(
            batch_first(grad, g_dim, 0, 0, size),
            batch_first(x, x_dim, 1, rank, size),
            batch_first(A, A_dim, 2, rank, size),
            symmetric,
            need_x,
            need_A,
        )
        return sample_shapes(grads, size, *shapes)


# Items from which on a product of n x n takes longer than the copy of its transposed result.
_MANY_ITEMS = 64


def _outer(g: Tensor, x: Tensor, p: Tensor, A: Tensor) -> Tensor | None:
    """Returns g (x pᵀ + p xᵀ), in the shape of A."""
    one = apply_bilinear_backward(g, x, A, p, False, True, False)[1]
    assert one is not None
    # Tracing works on subclasses of Tensor; its graphs must not depend on how large sizes are.
    plain = type(one) is Tensor and not backward_traced() and not is_batched(one)
    if plain and A.dim() == 2 and x.numel() >= _MANY_ITEMS * A.shape[0]:
        return one.mT.contiguous() + one
    two = apply_bilinear_backward(g, p, A, x, False, True, False)[1]
    if by_formulas() or not plain:
        return add(one, two)
    return one.add_(two)  # type: ignore[arg-type]


def _forward_and_save(ctx: Any, x: Tensor, A: Tensor, symmetric: bool) -> Tensor:
    ctx.symmetric = symmetric
    if forward_ad._current_level >= 0:
        save(ctx, x, A)
        return _value(x, A, symmetric)
    # dx for g = 1 comes out of the pass over A that makes the value; not where x is broadcast.
    keep = (
        ctx.needs_input_grad[0]
        and worth_keeping(x, A)
        and (A.dim() == 2 or A.shape[:-2] == x.shape[:-1])
    )
    if keep:
        alpha, p = _products(x, A, symmetric=symmetric)
        ctx.save_for_backward(x, A, p)
    else:
        alpha = _value(x, A, symmetric)
        ctx.save_for_backward(x, A if ctx.needs_input_grad[0] else unread(A))
    return alpha  # type: ignore[no-any-return]


_apply = fast_apply(Quadratic, _forward_and_save)


def apply_quadratic(x: Tensor, A: Tensor, symmetric: bool = False) -> Tensor:
    """`Quadratic` by the cheapest way that is right here."""
    if transforms_active():
        return Quadratic.apply(x, A, symmetric)  # type: ignore[no-any-return, no-untyped-call]
    if forward_ad._current_level >= 0 or ((x.requires_grad or A.requires_grad) and grad_enabled()):
        x, A = unwrap(x), unwrap(A)
        batched = forward_ad._current_level >= 0 and any_batched((x, A))
        if batched or is_batched(alpha := _apply(x, A, symmetric)):
            return legacy_vmap(Quadratic.vmap, x, A, symmetric)  # type: ignore[no-any-return]
        return alpha  # type: ignore[no-any-return]
    return _value(x, A, symmetric)


register("quadratic", Quadratic, apply_quadratic, _apply, casts=True)
apply_quadratic_backward = backward_route("quadratic_backward", QuadraticBackward)


def quadratic(x: Tensor, A: Tensor, *, symmetric: bool = False) -> Tensor:
    r"""The quadratic form α = xᵀ A x.

    .. math:: \alpha_{\dots} = \sum_{ij} x_{\dots i} A_{\dots ij} x_{\dots j}

    Args:
        x: (..., n).
        A: (..., n, n). Both float64, float32, bfloat16, float16, complex64 or complex128, one
            dtype, any strides. The batch dimensions (...) broadcast.
        symmetric: take A as the symmetric matrix that its lower triangle gives, and read that
            triangle only. The gradient of A is g x xᵀ all the same, full and symmetric.

    Returns:
        (...), a new contiguous tensor. With an upstream gradient g, backward returns
        dx = g (A + Aᵀ) x, or 2 g A x with `symmetric`, and dA = g x xᵀ (the factors conjugated if
        complex), summed over broadcast dimensions. bfloat16 and float16 are summed in float32 and
        rounded once.

    Raises:
        RuntimeError: A is not square or does not fit x, the batch dimensions do not broadcast, an
            operand is not dense or is of integers, or the dtypes or devices differ.
        TypeError: an operand is not a tensor, or `symmetric` is not a bool.

    Source:
        Barnes, *Matrix Differentiation*, propositions on α = xᵀAx; Petersen and Pedersen, *The
        Matrix Cookbook*, 2.4.2; mathematics StackExchange, question 312077.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> matcalc_ext.quadratic(torch.tensor([0.5, 1.0]), A)
        tensor(6.7500)
    """
    if traced():
        return torch.ops.matcalc_ext.quadratic(x, A, symmetric=symmetric)  # type: ignore[no-any-return]
    _ops.check_bool("quadratic", "symmetric", symmetric)
    try:
        if autocast_active():
            return apply_quadratic(autocast(x), autocast(A), symmetric)
        return apply_quadratic(x, A, symmetric)
    except Exception:
        if symbolic(x, A):
            return torch.ops.matcalc_ext.quadratic(x, A, symmetric=symmetric)  # type: ignore[no-any-return]
        refuse("quadratic", x=x, A=A)
        raise
