# mypy: disable-error-code="override"
"""One bilinear form per output: z_o = x₁ᵀ W_o x₂ + b_o."""

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
    add_all,
    autocast,
    autocast_active,
    by_formulas,
    contiguous_copy,
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
from .bilinear import apply_bilinear, apply_bilinear_backward

_forward = _ops.entry("nn_bilinear")
_backward = _ops.entry("nn_bilinear_backward")


class NnBilinear(Function):
    """z_o = x₁ᵀ W_o x₂ + b_o.

    For a gradient g of z: dx₁ = Σ_o g_o W_o x₂, dx₂ = Σ_o g_o W_oᵀ x₁, dW_o = Σ g_o x₁ x₂ᵀ and
    db = Σ g, the latter two summed over the batch.
    """

    @staticmethod
    def forward(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _forward(x1, x2, weight, bias)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs[:3])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Grads:
        if grad is None:
            return None, None, None, None
        x1, x2, weight = ctx.saved_tensors
        needs = needed(ctx, grad, weight)
        if by_formulas():
            return apply_nn_bilinear_backward(grad, x1, x2, weight, *needs)
        if False in needs:
            return _backward(grad, x1, x2, weight, *needs)  # type: ignore[no-any-return]
        return _backward(grad, x1, x2, weight)  # type: ignore[no-any-return]

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        primals: list[Tensor],
        d1: Tensor | None,
        d2: Tensor | None,
        dW: Tensor | None,
        db: Tensor | None,
    ) -> Any:
        """ẋ₁ᵀ W_o x₂ + x₁ᵀ W_o ẋ₂ + x₁ᵀ Ẇ_o x₂ + ḃ_o."""
        x1, x2, weight = primals
        return _differential(x1, x2, weight, d1, d2, dW, db)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        x1: Tensor,
        x2: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, int]:
        size = info.batch_size
        dim1, dim2, w_dim, b_dim = in_dims
        b_shape = None if bias is None else logical_shape(bias, b_dim)
        shape = _ops.nn_bilinear_shape(
            "nn_bilinear",
            logical_shape(x1, dim1),
            logical_shape(x2, dim2),
            logical_shape(weight, w_dim),
            b_shape,
        )
        x1, x2 = batch_first(x1, dim1, 0, 0, size), batch_first(x2, dim2, 0, 0, size)
        if w_dim is None:
            if b_dim is None:
                return apply_nn_bilinear(x1, x2, weight, bias), 0
            z = apply_nn_bilinear(x1, x2, weight)
        else:  # one weight per sample: a form per output with a batch of matrices
            forms = batch_first(weight, w_dim, 3, len(shape) - 1)
            z = apply_bilinear(x1.unsqueeze(-2), forms, x2.unsqueeze(-2))
        if bias is not None:
            z = z + batch_first(bias, b_dim, 1, len(shape) - 1)
        return z, 0


def _differential(
    x1: Tensor,
    x2: Tensor,
    weight: Tensor,
    d1: Tensor | None,
    d2: Tensor | None,
    dW: Tensor | None,
    db: Tensor | None,
) -> Tensor | None:
    """The derivative of the forms, of which any term may be absent; ḃ goes with the first."""
    out: Tensor | None = None
    if d1 is not None:
        out, db = apply_nn_bilinear(d1, x2, weight, db), None
    if d2 is not None:
        out, db = add(out, apply_nn_bilinear(x1, d2, weight, db)), None
    if dW is not None:
        out, db = add(out, apply_nn_bilinear(x1, x2, dW, db)), None
    if db is not None:
        out = contiguous_copy(db.expand(*x1.shape[:-1], weight.shape[0]))
    return out


class NnBilinearBackward(Function):
    """(g, x₁, x₂, W) -> (dx₁, dx₂, dW, db), each differentiable in turn."""

    @staticmethod
    def forward(
        grad: Tensor,
        x1: Tensor,
        x2: Tensor,
        weight: Tensor,
        need_x1: bool,
        need_x2: bool,
        need_weight: bool,
        need_bias: bool,
    ) -> Grads:
        return _backward(grad, x1, x2, weight, need_x1, need_x2, need_weight, need_bias)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs[:4])
        ctx.wanted = inputs[4:]

    @staticmethod
    def backward(
        ctx: Any, p: Tensor | None, q: Tensor | None, P: Tensor | None, r: Tensor | None
    ) -> Any:
        """The gradients for gradients (p, q, P, r) of (dx₁, dx₂, dW, db).

        dg_o = pᵀW_o x₂ + x₁ᵀW_o q + x₁ᵀP_o x₂ + r_o, dx₁ = Σ g_o (W_o q + P_o x₂),
        dx₂ = Σ g_o (W_oᵀ p + P_oᵀ x₁), dW_o = Σ g_o (p x₂ᵀ + x₁ qᵀ).
        """
        g, x1, x2, weight = ctx.saved_tensors
        need_g, need_1, need_2, need_W = needed(ctx, g, weight)[:4]
        dg = _differential(x1, x2, weight, p, q, P, r) if need_g else None
        terms: list[Grads] = []
        if p is not None and (need_2 or need_W):
            terms.append(apply_nn_bilinear_backward(g, p, x2, weight, False, need_2, need_W, False))
        if q is not None and (need_1 or need_W):
            terms.append(apply_nn_bilinear_backward(g, x1, q, weight, need_1, False, need_W, False))
        if P is not None and (need_1 or need_2):
            terms.append(apply_nn_bilinear_backward(g, x1, x2, P, need_1, need_2, False, False))
        d1, d2, dW, _ = add_all(terms, 4)
        return dg, d1, d2, dW, None, None, None, None

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        primals: list[Tensor],
        dg: Tensor | None,
        d1: Tensor | None,
        d2: Tensor | None,
        dW: Tensor | None,
        *_: None,
    ) -> Grads:
        """The four gradients, each factor in turn with its tangent in its place."""
        g, x1, x2, weight = primals
        need_1, need_2, need_W, need_b = ctx.wanted
        terms: list[Grads] = []
        if dg is not None:
            terms.append(
                apply_nn_bilinear_backward(dg, x1, x2, weight, need_1, need_2, need_W, need_b)
            )
        if d1 is not None and (need_2 or need_W):
            terms.append(
                apply_nn_bilinear_backward(g, d1, x2, weight, False, need_2, need_W, False)
            )
        if d2 is not None and (need_1 or need_W):
            terms.append(
                apply_nn_bilinear_backward(g, x1, d2, weight, need_1, False, need_W, False)
            )
        if dW is not None and (need_1 or need_2):
            terms.append(apply_nn_bilinear_backward(g, x1, x2, dW, need_1, need_2, False, False))
        return tangents(
            terms,
            x1 if need_1 else None,
            x2 if need_2 else None,
            weight if need_W else None,
            weight.new_empty(weight.shape[:1]) if need_b else None,
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        x1: Tensor,
        x2: Tensor,
        weight: Tensor,
        need_x1: bool,
        need_x2: bool,
        need_weight: bool,
        need_bias: bool,
    ) -> Any:
        size = info.batch_size
        g_dim, dim1, dim2, w_dim = in_dims[:4]
        shapes = logical_shape(x1, dim1), logical_shape(x2, dim2), logical_shape(weight, w_dim)
        grad = batch_first(grad, g_dim, 0, 0, size)
        x1, x2 = batch_first(x1, dim1, 0, 0, size), batch_first(x2, dim2, 0, 0, size)
        d1: Tensor | None = None
        d2: Tensor | None = None
        dW: Tensor | None = None
        if w_dim is None and not need_weight:  # one weight for all samples
            d1, d2, _, _ = apply_nn_bilinear_backward(
                grad, x1, x2, weight, need_x1, need_x2, False, False
            )
        elif need_x1 or need_x2 or need_weight:
            forms = batch_first(weight, w_dim, 3, len(shapes[0]) - 1, size)
            d1, dW, d2 = apply_bilinear_backward(
                grad, x1.unsqueeze(-2), forms, x2.unsqueeze(-2), need_x1, need_weight, need_x2
            )
        out = shapes[2][:1]
        db = grad.reshape(size, grad.shape[1:-1].numel(), *out).sum(1) if need_bias else None
        return sample_shapes((d1, d2, dW, db), size, *shapes, out)


def _forward_and_save(
    ctx: Any, x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor | None
) -> Tensor:
    if forward_ad._current_level >= 0:
        save(ctx, x1, x2, weight)
    else:
        need_1, need_2, need_W, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            x1 if need_2 or need_W else unread(x1),
            x2 if need_1 or need_W else unread(x2),
            weight if need_1 or need_2 else unread(weight),
        )
    return _forward(x1, x2, weight, bias)  # type: ignore[no-any-return]


_apply = fast_apply(NnBilinear, _forward_and_save)


def apply_nn_bilinear(
    input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    """`NnBilinear` by the cheapest way that is right here."""
    if transforms_active():
        return NnBilinear.apply(input1, input2, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    if forward_ad._current_level >= 0 or (
        (
            input1.requires_grad
            or input2.requires_grad
            or weight.requires_grad
            or (bias is not None and bias.requires_grad)
        )
        and grad_enabled()
    ):
        input1, input2, weight = unwrap(input1), unwrap(input2), unwrap(weight)
        bias = None if bias is None else unwrap(bias)
        batched = forward_ad._current_level >= 0 and any_batched((input1, input2, weight, bias))
        if batched or is_batched(z := _apply(input1, input2, weight, bias)):
            return legacy_vmap(NnBilinear.vmap, input1, input2, weight, bias)  # type: ignore[no-any-return]
        return z  # type: ignore[no-any-return]
    return _forward(input1, input2, weight, bias)  # type: ignore[no-any-return]


register("nn_bilinear", NnBilinear, apply_nn_bilinear, _apply, casts=True)
apply_nn_bilinear_backward = backward_route("nn_bilinear_backward", NnBilinearBackward)


def nn_bilinear(
    input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Tensor:
    r"""One bilinear form per output, z_o = x₁ᵀ W_o x₂ + b_o, as `torch.nn.functional.bilinear`.

    .. math:: z_{\dots o} = \sum_{ij} x_{1,\dots i} W_{oij} x_{2,\dots j} + b_o

    Args:
        input1: x₁, (..., in1).
        input2: x₂, (..., in2), with the same leading dimensions (...), none among them.
        weight: W, (out, in1, in2).
        bias: b, (out,), or None. All float64, float32, bfloat16, float16, complex64 or complex128,
            one dtype, any strides.

    Returns:
        (..., out), a new contiguous tensor. With an upstream gradient g, backward returns
        dx₁ = Σ_o g_o W_o x₂, dx₂ = Σ_o g_o W_oᵀ x₁, and, summed over (...), dW_o = Σ g_o x₁ x₂ᵀ and
        db = Σ g (the factors conjugated if complex). bfloat16 and float16 are summed in float32 and
        rounded once; where the processor multiplies bfloat16, the products of two inputs that W or
        g meets are rounded too.

    Raises:
        RuntimeError: the leading dimensions differ, the weight does not fit the inputs or the bias
            the weight, an operand is not dense or is of integers, or the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Source:
        Barnes, *Matrix Differentiation*, propositions on α = yᵀAx, once for each W_o.

    Example:
        >>> weight = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [-1.0, 0.0]]])
        >>> x1, x2 = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
        >>> matcalc_ext.nn_bilinear(x1, x2, weight)
        tensor([11., -2.])
    """
    if traced():
        return torch.ops.matcalc_ext.nn_bilinear(input1, input2, weight, bias)  # type: ignore[no-any-return]
    try:
        if autocast_active():
            return apply_nn_bilinear(
                autocast(input1), autocast(input2), autocast(weight), autocast(bias)
            )
        return apply_nn_bilinear(input1, input2, weight, bias)
    except Exception:
        if symbolic(input1, input2, weight, bias):
            return torch.ops.matcalc_ext.nn_bilinear(input1, input2, weight, bias)  # type: ignore[no-any-return]
        refuse("nn_bilinear", input1=input1, input2=input2, weight=weight, bias=bias)
        raise
