# mypy: disable-error-code="override"
"""The linear map z = x Wᵀ + b."""

import math
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
from ._vmap import any_batched, batch_first, legacy_vmap, logical_shape
from .matmul import Matmul, MatmulBackward

_forward = _ops.entry("linear")
_backward = _ops.entry("linear_backward")


class Linear(Function):
    """z = x Wᵀ + b; for a gradient g of z: dx = g W, dW = gᵀ x, db = Σ g."""

    @staticmethod
    def forward(input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return _forward(input, weight, bias)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> Grads:
        if grad is None:
            return None, None, None
        input, weight, *saved = ctx.saved_tensors
        bias = saved[0] if saved else _bias_as_it_was(ctx, input)
        needs = needed(ctx, grad, grad)
        if by_formulas():
            return apply_linear_backward(grad, input, weight, bias, *needs)
        if False in needs:
            return _backward(grad, input, weight, bias, *needs)  # type: ignore[no-any-return]
        return _backward(grad, input, weight, bias)  # type: ignore[no-any-return]

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        primals: list[Tensor],
        dx: Tensor | None,
        dW: Tensor | None,
        db: Tensor | None,
    ) -> Any:
        """ẋ Wᵀ + x Ẇᵀ + ḃ."""
        x, weight, _ = primals
        return _differential(x, weight, dx, dW, db)

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> tuple[Tensor, int]:
        x_dim, w_dim, b_dim = in_dims
        b_shape = None if bias is None else logical_shape(bias, b_dim)
        w_shape = logical_shape(weight, w_dim)
        _ops.linear_shape("linear", logical_shape(input, x_dim), w_shape, b_shape)
        if w_dim is None:
            x = batch_first(input, x_dim, 0, 0, info.batch_size)
            if b_dim is None:
                return apply_linear(x, weight, bias), 0
            z = apply_linear(x, weight)
        else:  # one weight per sample: a batch of matrix products
            weights = weight.movedim(w_dim, 0)
            transposed = weights.mT if len(w_shape) == 2 else weights
            z, _ = Matmul.vmap(info, (x_dim, 0), input, transposed)
        if bias is not None and b_shape is not None:
            bias = bias.unsqueeze(0) if b_dim is None else bias.movedim(b_dim, 0)
            bias = bias.reshape(bias.shape[0], math.prod(b_shape))
            last = bias.shape[1:] if len(w_shape) == 2 else ()
            z = z + bias.reshape(bias.shape[0], *[1] * (z.dim() - 1 - len(last)), *last)
        return z, 0


def _spread(bias: Tensor, shape: list[int]) -> Tensor:
    """The bias, (out,) or one element, in the shape of the output."""
    return (bias.reshape(()) if bias.numel() == 1 else bias).expand(shape)


def _differential(
    x: Tensor, weight: Tensor, dx: Tensor | None, dW: Tensor | None, db: Tensor | None
) -> Any:
    """The derivative ẋ Wᵀ + x Ẇᵀ + ḃ of the map, of which any term may be absent."""
    if dW is not None:
        return add(apply_linear(x, dW, db), None if dx is None else apply_linear(dx, weight))
    if dx is not None:
        return apply_linear(dx, weight, db)
    if db is not None:
        shape = _ops.linear_shape("linear", x.shape, weight.shape, db.shape)
        return contiguous_copy(_spread(db, shape))
    return None


class LinearBackward(Function):
    """(g, x, W) -> (g W, gᵀ x, Σ g), each differentiable in turn. Of b only the shape is read."""

    @staticmethod
    def forward(
        grad: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        need_input: bool,
        need_weight: bool,
        need_bias: bool,
    ) -> Grads:
        return _backward(grad, input, weight, bias, need_input, need_weight, need_bias)  # type: ignore[no-any-return]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        save(ctx, *inputs[:4])
        ctx.wanted = inputs[4:]

    @staticmethod
    def backward(ctx: Any, p: Tensor | None, P: Tensor | None, q: Tensor | None) -> Any:
        """For gradients (p, P, q) of (dx, dW, db): dg = p Wᵀ + x Pᵀ + q, dx = g P, dW = gᵀ p."""
        g, x, weight, _ = ctx.saved_tensors
        need_g, need_x, need_weight = needed(ctx, g, g)[:3]
        dg = _differential(x, weight, p, P, q) if need_g else None
        dx = dW = None
        if P is not None and need_x:
            dx = apply_linear_backward(g, x, P, None, True, False, False)[0]
        if p is not None and need_weight:
            dW = apply_linear_backward(g, p, weight, None, False, True, False)[1]
        return dg, dx, dW, None, None, None, None

    @staticmethod
    @forward_rule
    def jvp(
        ctx: Any,
        primals: list[Any],
        dg: Tensor | None,
        dx: Tensor | None,
        dW: Tensor | None,
        *_: Any,
    ) -> Grads:
        """ġ W + g Ẇ, ġᵀ x + gᵀ ẋ and Σ ġ."""
        g, x, weight, bias = primals
        need_x, need_weight, need_bias = ctx.wanted
        terms: list[Grads] = []
        if dg is not None:
            terms.append(apply_linear_backward(dg, x, weight, bias, need_x, need_weight, need_bias))
        if dx is not None and need_weight:
            terms.append(apply_linear_backward(g, dx, weight, None, False, True, False))
        if dW is not None and need_x:
            terms.append(apply_linear_backward(g, x, dW, None, True, False, False))
        return tangents(
            terms,
            x if need_x else None,
            weight if need_weight else None,
            bias if need_bias else None,
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        grad: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        need_input: bool,
        need_weight: bool,
        need_bias: bool,
    ) -> Any:
        size = info.batch_size
        g_dim, x_dim, w_dim, b_dim = in_dims[:4]
        grad = batch_first(grad, g_dim, 0, 0, size)
        dx = dW = db = None
        if w_dim is None and not need_weight:  # one weight for all samples
            x = batch_first(input, x_dim, 0, 0, size)
            dx = apply_linear_backward(grad, x, weight, None, need_input, False, False)[0]
        elif need_input or need_weight:
            weights = batch_first(weight, w_dim, 0, 0, size)
            transposed = weights.mT if weights.dim() == 3 else weights
            (dx, dW), _ = MatmulBackward.vmap(
                info, (0, x_dim, 0), grad, input, transposed, need_input, need_weight
            )
            if dW is not None and dW.dim() == 3:
                dW = dW.mT
        if need_bias:
            assert bias is not None
            shape = logical_shape(bias, b_dim)
            last = math.prod(shape)
            rows = grad.shape[1:].numel() // max(last, 1)
            db = grad.reshape(size, rows, last).sum(1).reshape(size, *shape)
        grads = dx, dW, db
        return grads, tuple(None if grad is None else 0 for grad in grads)


def _bias_as_it_was(ctx: Any, input: Tensor) -> Tensor | None:
    """What the backward op reads the shape of, of a bias that may be another by now.

    `module.double()` and `bias.data = ...` between the two passes change the very tensor.
    """
    bias: Tensor | None = ctx.bias
    if bias is None or (
        bias.shape == ctx.bias_shape and bias.dtype == input.dtype and bias.device == input.device
    ):
        return bias
    return input.new_empty(()).expand(ctx.bias_shape)


def _forward_and_save(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if forward_ad._current_level >= 0:
        save(ctx, input, weight, bias)
    else:
        need_input, need_weight, _ = ctx.needs_input_grad
        ctx.save_for_backward(
            input if need_weight else unread(input), weight if need_input else unread(weight)
        )
        # Not saved: its values are not read, and may change.
        ctx.bias, ctx.bias_shape = bias, None if bias is None else bias.shape
    return _forward(input, weight, bias)  # type: ignore[no-any-return]


_apply = fast_apply(Linear, _forward_and_save)


def apply_linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`Linear` by the cheapest way that is right here."""
    if transforms_active():
        return Linear.apply(input, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    if forward_ad._current_level >= 0 or (
        (input.requires_grad or weight.requires_grad or (bias is not None and bias.requires_grad))
        and grad_enabled()
    ):
        input, weight = unwrap(input), unwrap(weight)
        bias = None if bias is None else unwrap(bias)
        batched = forward_ad._current_level >= 0 and any_batched((input, weight, bias))
        if batched or is_batched(z := _apply(input, weight, bias)):
            return legacy_vmap(Linear.vmap, input, weight, bias)  # type: ignore[no-any-return]
        return z  # type: ignore[no-any-return]
    return _forward(input, weight, bias)  # type: ignore[no-any-return]


register("linear", Linear, apply_linear, _apply, casts=True)
apply_linear_backward = backward_route("linear_backward", LinearBackward)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    r"""The linear map z = x Wᵀ + b, as `torch.nn.functional.linear`, the bias added on the way.

    .. math:: z_{\dots o} = \sum_i x_{\dots i} W_{oi} + b_o

    Args:
        input: x, (..., in).
        weight: W, (out, in), or (in,), with `out` left out of the result.
        bias: b, (out,) or of one element, or None. All float64, float32, bfloat16, float16,
            complex64 or complex128, one dtype, any strides.

    Returns:
        (..., out), a new contiguous tensor. With an upstream gradient g, backward returns
        dx = g W, dW = gᵀ x (W and x conjugated if complex) and db = Σ g, the latter two summed over
        (...). bfloat16 and float16 are summed in float32 and rounded once.

    Raises:
        RuntimeError: the weight does not fit the input or the bias the weight, an operand is not
            dense or is of integers, or the dtypes or devices differ.
        TypeError: an argument is not a tensor.

    Source:
        Barnes, *Matrix Differentiation*, propositions 5 and 6, with W for A.

    Example:
        >>> weight = torch.tensor([[0.5, 1.5], [-0.5, -1.0]])
        >>> matcalc_ext.linear(torch.tensor([[1.0, 2.0]]), weight, torch.tensor([0.1, -0.1]))
        tensor([[ 3.6000, -2.6000]])
    """
    if traced():
        return torch.ops.matcalc_ext.linear(input, weight, bias)  # type: ignore[no-any-return]
    try:
        if autocast_active():
            return apply_linear(autocast(input), autocast(weight), autocast(bias))
        return apply_linear(input, weight, bias)
    except Exception:
        if symbolic(input, weight, bias):
            return torch.ops.matcalc_ext.linear(input, weight, bias)  # type: ignore[no-any-return]
        refuse("linear", input=input, weight=weight, bias=bias)
        raise
