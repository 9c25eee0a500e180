# mypy: disable-error-code="override"
"""The bilinear form α = yᵀ A x."""

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
    worth_keeping,
)
from ._vmap import any_batched, batch_first, legacy_vmap, logical_shape, sample_shapes

_forward = _ops.entry("bilinear")
_backward = _ops.entry("bilinear_backward")
_products = _ops.entry("bilinear_products")
_products_backward = _ops.entry("bilinear_products_backward")


class Bilinear(Function):
    """α = yᵀ A x; for a gradient g of α: dy = g A x, dA = g y xᵀ, dx = g Aᵀ y."""

    @staticmethod
    def forward(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
        return _forward(y, A, x)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Grads:
        if grad is None:
            return None, None, None
        y, A, x, *kept = ctx.saved_tensors
        needs = needed(ctx, grad, y, A)
        if by_formulas():
            return apply_bilinear_backward(grad, y, A, x, *needs)
        if kept and not is_batched(grad):
            return _products_backward(grad, y, A, x, *kept, *needs)  # type: ignore[no-any-return]
        if False in needs:
            return _backward(grad, y, A, x, *needs)  # type: ignore[no-any-return]
        return _backward(grad, y, A, x)  # type: ignore[no-any-return]

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        primals: list[Tensor],
        dy: Tensor | None,
        dA: Tensor | None,
        dx: Tensor | None,
    ) -> Any:
        """ẏᵀ A x + yᵀ Ȧ x + yᵀ A ẋ."""
        y, A, x = primals
        out = None if dy is None else apply_bilinear(dy, A, x)
        if dA is not None:
            out = add(out, apply_bilinear(y, dA, x))
        if dx is not None:
            out = add(out, apply_bilinear(y, A, dx))
        return out

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int | None, ...], y: Tensor, A: Tensor, x: Tensor
    ) -> tuple[Tensor, int]:
        y_dim, A_dim, x_dim = in_dims
        rank = len(
            _ops.bilinear_shape(
                "bilinear",
                logical_shape(y, y_dim),
                logical_shape(A, A_dim),
                logical_shape(x, x_dim),
            )
        )
        alpha = apply_bilinear(
            batch_first(y, y_dim, 1, rank),
            batch_first(A, A_dim, 2, rank),
            batch_first(x, x_dim, 1, rank),
        )
        return alpha, 0


class BilinearBackward(Function):
    """(g, y, A, x) -> (g A x, g y xᵀ, g Aᵀ y), each differentiable in turn."""

    @staticmethod
    def forward(
        grad: Tensor, y: Tensor, A: Tensor, x: Tensor, need_y: bool, need_A: bool, need_x: bool
    ) -> Grads:
        return _backward(grad, y, A, x, need_y, need_A, need_x)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs[:4])
        ctx.wanted = inputs[4:]

    @staticmethod
    def backward(ctx: Any, p: Tensor | None, P: Tensor | None, q: Tensor | None) -> Any:
        """The gradients for gradients (p, P, q) of (dy, dA, dx).

        dg = pᵀAx + yᵀPx + yᵀAq, dy = g (P x + A q), dA = g (p xᵀ + y qᵀ), dx = g (Aᵀp + Pᵀy).
        """
        g, y, A, x = ctx.saved_tensors
        need_g, need_y, need_A, need_x = needed(ctx, g, y, A)[:4]
        dg = dy = dA = dx = None
        if p is not None:
            dg = apply_bilinear(p, A, x) if need_g else None
            if need_A or need_x:
                _, dA, dx = apply_bilinear_backward(g, p, A, x, False, need_A, need_x)
        if P is not None:
            dg = add(dg, apply_bilinear(y, P, x)) if need_g else None
            if need_y or need_x:
                dy, _, more = apply_bilinear_backward(g, y, P, x, need_y, False, need_x)
                dx = add(dx, more)
        if q is not None:
            dg = add(dg, apply_bilinear(y, A, q)) if need_g else None
            if need_y or need_A:
                more, more_A, _ = apply_bilinear_backward(g, y, A, q, need_y, need_A, False)
                dy, dA = add(dy, more), add(dA, more_A)
        return dg, dy, dA, dx, None, None, None

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        primals: list[Tensor],
        dg: Tensor | None,
        dy: Tensor | None,
        dA: Tensor | None,
        dx: Tensor | None,
        *_: None,
    ) -> Grads:
        """g A x, g y xᵀ and g Aᵀ y, each factor in turn with its tangent in its place."""
        g, y, A, x = primals
        need_y, need_A, need_x = ctx.wanted
        terms: list[Grads] = []
        if dg is not None:
            terms.append(apply_bilinear_backward(dg, y, A, x, need_y, need_A, need_x))
        if dy is not None and (need_A or need_x):
            terms.append(apply_bilinear_backward(g, dy, A, x, False, need_A, need_x))
        if dA is not None and (need_y or need_x):
            terms.append(apply_bilinear_backward(g, y, dA, x, need_y, False, need_x))
        if dx is not None and (need_y or need_A):
            terms.append(apply_bilinear_backward(g, y, A, dx, need_y, need_A, False))
        return tangents(terms, y if need_y else None, A if need_A else None, x if need_x else None)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        y: Tensor,
        A: Tensor,
        x: Tensor,
        need_y: bool,
        need_A: bool,
        need_x: bool,
    ) -> Any:
        size = info.batch_size
        g_dim, y_dim, A_dim, x_dim = in_dims[:4]
        shapes = logical_shape(y, y_dim), logical_shape(A, A_dim), logical_shape(x, x_dim)
        rank = len(_ops.bilinear_shape("bilinear_backward", *shapes))
        grads = apply_bilinear_backward(
            batch_first(grad, g_dim, 0, 0, size),
            batch_first(y, y_dim, 1, rank, size),
            batch_first(A, A_dim, 2, rank, size),
            batch_first(x, x_dim, 1, rank, size),
            need_y,
            need_A,
            need_x,
        )
        return sample_shapes(grads, size, *shapes)


def _products_to_keep(ctx: Any, y: Tensor, A: Tensor, x: Tensor) -> tuple[bool, bool]:
    """Which of A x and Aᵀ y the forward pass should make and keep, so that backward need not.

    Where each item has a matrix of its own, one pass over it makes both; where items share one, the
    value needs one of the two products, and the other would be a second. Where they share a vector
    too, it is the one that takes less work: the gradients of the other vector's side have another
    product in common.
    """
    need_y, _, need_x = ctx.needs_input_grad
    if not (need_y or need_x) or not worth_keeping(y, A):
        return False, False
    if y.shape[:-1] == x.shape[:-1]:
        if A.shape[:-2] == y.shape[:-1]:
            return need_y, need_x
        return (need_y, need_x and not need_y) if A.dim() == 2 else (False, False)
    return _shared_product_to_keep(y, A, x, need_y, need_x)


def _shared_product_to_keep(
    y: Tensor, A: Tensor, x: Tensor, need_y: bool, need_x: bool
) -> tuple[bool, bool]:
    try:
        p_items, q_items, items = _ops.product_items(y.shape, A.shape, x.shape)
    except RuntimeError:
        return False, False  # an error, which the op will say
    m, n = A.shape[-2:]
    if q_items * m * n + items * n <= p_items * m * n + items * m:
        return False, need_x and q_items < items
    return need_y and p_items < items, False


def _forward_and_save(ctx: Any, y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    if forward_ad._current_level >= 0:
        save(ctx, y, A, x)
        return _forward(y, A, x)  # type: ignore[no-any-return]
    kept = ()
    keep_p, keep_q = _products_to_keep(ctx, y, A, x)
    if keep_p or keep_q:
        alpha, *kept = _products(y, A, x, keep_p, keep_q)
    else:
        alpha = _forward(y, A, x)
    need_y, need_A, need_x = ctx.needs_input_grad
    ctx.save_for_backward(
        y if need_A or need_x else unread(y),
        A if need_y or need_x else unread(A),
        x if need_y or need_A else unread(x),
        *kept,
    )
    return alpha  # type: ignore[no-any-return]


_apply = fast_apply(Bilinear, _forward_and_save)


def apply_bilinear(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    """`Bilinear` by the cheapest way that is right here."""
    if transforms_active():
        return Bilinear.apply(y, A, x)  # type: ignore[no-any-return, no-untyped-call]
    if forward_ad._current_level >= 0 or (
        (y.requires_grad or A.requires_grad or x.requires_grad) and grad_enabled()
    ):
        y, A, x = unwrap(y), unwrap(A), unwrap(x)
        batched = forward_ad._current_level >= 0 and any_batched((y, A, x))
        if batched or is_batched(alpha := _apply(y, A, x)):
            return legacy_vmap(Bilinear.vmap, y, A, x)  # type: ignore[no-any-return]
        return alpha  # type: ignore[no-any-return]
    return _forward(y, A, x)  # type: ignore[no-any-return]


register("bilinear", Bilinear, apply_bilinear, _apply, casts=True)
apply_bilinear_backward = backward_route("bilinear_backward", BilinearBackward)


def bilinear(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    r"""The bilinear form α = yᵀ A x.

    .. math:: \alpha_{\dots} = \sum_{ij} y_{\dots i} A_{\dots ij} x_{\dots j}

    Args:
        y: (..., m).
        A: (..., m, n).
        x: (..., n). All three float64, float32, bfloat16, float16, complex64 or complex128, one
            dtype, any strides. The batch dimensions (...) broadcast.

    Returns:
        (...), a new contiguous tensor. Nothing is conjugated: for complex vectors this is no inner
        product. With an upstream gradient g, backward returns dy = g A x, dA = g y xᵀ and
        dx = g Aᵀ y (the factors conjugated if complex), summed over broadcast dimensions.
        bfloat16 and float16 are summed in float32 and rounded once; bfloat16 products A x or Aᵀ y
        that items share, as those of all pairs, are rounded too.

    Raises:
        RuntimeError: y does not fit the rows of A or x its columns, the batch dimensions do not
            broadcast, an operand is not dense or is of integers, or the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Source:
        Barnes, *Matrix Differentiation*, propositions on α = yᵀAx; Petersen and Pedersen, *The
        Matrix Cookbook*, 2.4.1.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
        >>> matcalc_ext.bilinear(torch.tensor([1.0, 0.0, -1.0]), A, torch.tensor([0.5, 1.0]))
        tensor(-6.)
    """
    if traced():
        return torch.ops.matcalc_ext.bilinear(y, A, x)  # type: ignore[no-any-return]
    try:
        if autocast_active():
            return apply_bilinear(autocast(y), autocast(A), autocast(x))
        return apply_bilinear(y, A, x)
    except Exception:
        if symbolic(y, A, x):
            return torch.ops.matcalc_ext.bilinear(y, A, x)  # type: ignore[no-any-return]
        refuse("bilinear", y=y, A=A, x=x)
        raise
