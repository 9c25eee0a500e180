# mypy: disable-error-code="override"
"""The matrix product Y = A B."""

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
)
from ._vmap import any_batched, batch_first, legacy_vmap, logical_shape, sample_shapes

_forward = _ops.entry("matmul")
_backward = _ops.entry("matmul_backward")


class Matmul(Function):
    """Y = A B; for a gradient g of Y: dA = g Bᴴ, dB = Aᴴ g."""

    @staticmethod
    def forward(a: Tensor, b: Tensor) -> Tensor:
        return _forward(a, b)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Grads:
        if grad is None:
            return None, None
        a, b = ctx.saved_tensors
        needs = needed(ctx, grad, grad)
        if by_formulas():
            return apply_matmul_backward(grad, a, b, *needs)
        if False in needs:
            return _backward(grad, a, b, *needs)  # type: ignore[no-any-return]
        return _backward(grad, a, b)  # type: ignore[no-any-return]

    @staticmethod
    @forward_rule
    def jvp(ctx: Any, primals: list[Tensor], da: Tensor | None, db: Tensor | None) -> Any:
        """Ȧ B + A Ḃ."""
        a, b = primals
        return add(
            None if da is None else apply_matmul(da, b),
            None if db is None else apply_matmul(a, db),
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], a: Tensor, b: Tensor
    ) -> tuple[Tensor, int]:
        a_dim, b_dim = in_dims[:2]
        a_shape, b_shape = logical_shape(a, a_dim), logical_shape(b, b_dim)
        _ops.matmul_shape("matmul", a_shape, b_shape)
        rank = max(len(a_shape), len(b_shape), 2) - 2
        # A vector per sample becomes a matrix of one row or one column, which goes again after.
        row = len(a_shape) == 1 and a_dim is not None
        column = len(b_shape) == 1 and b_dim is not None
        a = a.movedim(a_dim, 0).unsqueeze(-2) if row else a  # type: ignore[arg-type]
        b = b.movedim(b_dim, 0).unsqueeze(-1) if column else b  # type: ignore[arg-type]
        y = apply_matmul(
            batch_first(a, 0 if row else a_dim, 2, rank),
            batch_first(b, 0 if column else b_dim, 2, rank),
        )
        if column:
            y = y.squeeze(-1)
        if row:
            y = y.squeeze(-1 if len(b_shape) == 1 else -2)
        return y, 0


class MatmulBackward(Function):
    """(g, A, B) -> (g Bᴴ, Aᴴ g), each differentiable in turn."""

    @staticmethod
    def forward(grad: Tensor, a: Tensor, b: Tensor, need_a: bool, need_b: bool) -> Grads:
        return _backward(grad, a, b, need_a, need_b)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs[:3])
        ctx.wanted = inputs[3:]

    @staticmethod
    def backward(ctx: Any, p: Tensor | None, q: Tensor | None) -> Any:
        """For gradients (P, Q) of (dA, dB): dg = P B + A Q, and dA = g Qᴴ, dB = Pᴴ g."""
        g, a, b = ctx.saved_tensors
        need_g, need_a, need_b = needed(ctx, g, g)[:3]
        dg = da = db = None
        if p is not None:
            if need_g:
                dg = apply_matmul(p, b)
            if need_b:
                db = apply_matmul_backward(g, p, b, False, True)[1]
        if q is not None:
            if need_g:
                dg = add(dg, apply_matmul(a, q))
            if need_a:
                da = apply_matmul_backward(g, a, q, True, False)[0]
        return dg, da, db, None, None

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        primals: list[Tensor],
        dg: Tensor | None,
        da: Tensor | None,
        db: Tensor | None,
        *_: None,
    ) -> Grads:
        """ġ Bᴴ + g Ḃᴴ and Aᴴ ġ + Ȧᴴ g."""
        g, a, b = primals
        need_a, need_b = ctx.wanted
        terms: list[Grads] = []
        if dg is not None:
            terms.append(apply_matmul_backward(dg, a, b, need_a, need_b))
        if da is not None and need_b:
            terms.append(apply_matmul_backward(g, da, b, False, True))
        if db is not None and need_a:
            terms.append(apply_matmul_backward(g, a, db, True, False))
        return tangents(terms, a if need_a else None, b if need_b else None)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        a: Tensor,
        b: Tensor,
        need_a: bool,
        need_b: bool,
    ) -> Any:
        size = info.batch_size
        g_dim, a_dim, b_dim = in_dims[:3]
        a_shape, b_shape = logical_shape(a, a_dim), logical_shape(b, b_dim)
        rank = max(len(a_shape), len(b_shape), 2) - 2
        a = batch_first(a, a_dim, min(len(a_shape), 2), 0, size)
        b = batch_first(b, b_dim, min(len(b_shape), 2), 0, size)
        grad = batch_first(grad, g_dim, 0, 0, size)
        if len(b_shape) == 1:
            b, grad = b.unsqueeze(-1), grad.unsqueeze(-1)
        if len(a_shape) == 1:
            a, grad = a.unsqueeze(-2), grad.unsqueeze(-2)
        grads = apply_matmul_backward(
            grad, batch_first(a, 0, 2, rank), batch_first(b, 0, 2, rank), need_a, need_b
        )
        return sample_shapes(grads, size, a_shape, b_shape)


def _forward_and_save(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
    if forward_ad._current_level >= 0:
        save(ctx, a, b)
    else:
        need_a, need_b = ctx.needs_input_grad
        ctx.save_for_backward(a if need_b else unread(a), b if need_a else unread(b))
    return _forward(a, b)  # type: ignore[no-any-return]


_apply = fast_apply(Matmul, _forward_and_save)


def apply_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`Matmul` by the cheapest way that is right here."""
    if transforms_active():
        return Matmul.apply(a, b)  # type: ignore[no-any-return, no-untyped-call]
    if forward_ad._current_level >= 0 or ((a.requires_grad or b.requires_grad) and grad_enabled()):
        a, b = unwrap(a), unwrap(b)
        batched = forward_ad._current_level >= 0 and any_batched((a, b))
        if batched or is_batched(y := _apply(a, b)):
            return legacy_vmap(Matmul.vmap, a, b)  # type: ignore[no-any-return]
        return y  # type: ignore[no-any-return]
    return _forward(a, b)  # type: ignore[no-any-return]


register("matmul", Matmul, apply_matmul, _apply, casts=True)
apply_matmul_backward = backward_route("matmul_backward", MatmulBackward)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    r"""The matrix product Y = A B, by the shape rules of `torch.matmul`.

    .. math:: Y_{\dots mn} = \sum_k A_{\dots mk} B_{\dots kn}

    Args:
        a: (..., m, k), or (k,): a row vector, whose m is left out of the result.
        b: (..., k, n), or (k,): a column vector, whose n is left out of the result.
            float64, float32, bfloat16, float16, complex64 or complex128, the same as `a`, and any
            strides; int64, int32, int16, int8 and uint8 work too, without derivatives. The batch
            dimensions (...) broadcast.

    Returns:
        (..., m, n), a new contiguous tensor. With an upstream gradient g, backward returns
        dA = g Bᵀ and dB = Aᵀ g (B and A conjugated if complex), summed over broadcast dimensions.
        bfloat16 and float16 are summed in float32 and rounded once.

    Raises:
        RuntimeError: the inner dimensions differ, the batch dimensions do not broadcast, an operand
            has no dimension, is not dense, or the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Source:
        Barnes, *Matrix Differentiation*, proposition 5; Petersen and Pedersen, *The Matrix
        Cookbook*, 2.4.

    Example:
        >>> a = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> matcalc_ext.matmul(a, torch.tensor([0.5, 1.0]))
        tensor([2.5000, 5.5000, 8.5000])
    """
    if traced():
        return torch.ops.matcalc_ext.matmul(a, b)  # type: ignore[no-any-return]
    try:
        if autocast_active():
            return apply_matmul(autocast(a), autocast(b))
        return apply_matmul(a, b)
    except Exception:
        if symbolic(a, b):
            return torch.ops.matcalc_ext.matmul(a, b)  # type: ignore[no-any-return]
        refuse("matmul", a=a, b=b)
        raise
