"""What the ops have in common: the ways a call can take, and helpers for the rules.

A public function takes one of four ways, from the rarest to the cheapest:

1. A graph is being made, by torch.compile say: the dispatcher op, which it keeps as a node.
2. A torch.func transform is active: `Function.apply`, which knows the transforms (20 us).
3. A gradient or a tangent is wanted: the `apply` of the C base class of Function (5 us). It runs
   the same static methods, without binding a signature at each call first.
4. Nothing is wanted: the dispatcher op, below autograd.

A direct call of `torch.ops.matcalc_ext.*`, the node of a compiled graph among them, comes from the
dispatcher to the same ways by the kernels of `_dispatch.py`. They all end at the same kernels
under a name that begins with "_", where autograd, autocast and transforms are no longer asked.

Complex: every factor beside g is conjugated in a gradient, first or second, and in the tangent of a
gradient; the gradient of g itself, a value and its tangent have no conjugates. The formulas in the
docstrings of the Functions leave them out, but for those of matmul (Bᴴ).
"""

from collections.abc import Callable, Sequence
from functools import partial, wraps
from operator import and_
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

# Looked up once: they are used at each call.
transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
autocast_active: Callable[[], bool] = torch._C._is_any_autocast_enabled
_compiling: Callable[[], bool] = torch.compiler.is_compiling
_dynamo_tracing: Callable[[], bool] = torch.compiler.is_dynamo_compiling
_jit_tracing: Callable[[], bool] = torch._C._is_tracing
_function_modes: Callable[[], int] = torch._C._len_torch_function_stack
_before_dispatch: Callable[[], bool] = partial(
    torch._C._dispatch_tls_is_dispatch_key_included, torch._C.DispatchKey.PreDispatch
)
grad_enabled: Callable[[], bool] = torch.is_grad_enabled
# A tensor that outlived its transform (one saved for the backward pass of torch.func.vjp, say)
# stands for the tensor inside it; the dispatcher unwraps it, Function's C base class does not.
unwrap: Callable[[Tensor], Tensor] = torch._C._functorch.unwrap_if_dead
is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor

Grads = tuple[Tensor | None, ...]


def traced() -> bool:
    """Whether a graph is made of what is called, and made before autograd: it holds the public op.

    By torch.compile, torch.export, torch.jit.trace or make_fx(pre_dispatch=True). The last is a
    function mode too, which is the cheaper one to ask for.
    """
    return _compiling() or _jit_tracing() or (_function_modes() > 0 and _before_dispatch())


def backward_traced() -> bool:
    """The same of what a backward pass calls: compiled autograd traces that.

    Function modes are off there.
    """
    return _dynamo_tracing() or _before_dispatch()


def fast_apply(
    function: type[Function], forward: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """`function.apply` of the C base class: right where no torch.func transform is active.

    `forward(ctx, *args)`, if given, does what the function's `forward` and `setup_context` do and
    is called in their place: one call instead of two. The node that is made calls `backward` itself
    without torch's method in between, which looks up at each call what the rule is named.
    """
    if forward is not None:
        methods = {"forward": staticmethod(forward), "setup_context": Function.setup_context}
        function = type(function.__name__, (function,), methods)
    function._backward_cls.apply = function.backward  # type: ignore[attr-defined]
    return super(Function, function).apply  # type: ignore[misc, no-any-return]


def by_formulas() -> bool:
    """Whether a backward pass calls our Functions in turn, not the op below them.

    It is differentiated itself, or runs inside a transform, or is traced.
    """
    return (
        grad_enabled() or forward_ad._current_level >= 0 or transforms_active() or backward_traced()
    )


def save(ctx: Any, *tensors: Tensor | None) -> None:
    """Keeps tensors for the rules; for the forward rule only where one can be called.

    The rules are then given None for gradients and tangents that are not there, and no zeros.
    """
    ctx.save_for_backward(*tensors)
    ctx.set_materialize_grads(False)
    if forward_ad._current_level >= 0 or transforms_active():
        ctx.save_for_forward(*tensors)


def unread(tensor: Tensor) -> Tensor:
    """What is saved of an operand where no gradient that is needed reads its values: its shape."""
    if type(tensor) not in (Tensor, torch.nn.Parameter) or is_batched(tensor):
        return tensor
    return tensor.new_empty(()).expand(tensor.shape)


# Multiply-adds from which it pays to keep A x and Aᵀ y of the forward pass for the backward pass:
# below, making and keeping them costs as much as a second pass over A.
_KEEP_FROM = 1 << 15
_KEEP_FROM_CUDA = 1 << 22  # there a kernel's launch costs as much as reading some million numbers


def worth_keeping(y: Tensor, A: Tensor) -> bool:
    """Whether the forward pass of a form should keep its products for the backward pass."""
    if A.dim() < 2:
        return False  # an error, which the op will say
    work = y.numel() * A.shape[-1]
    # A graph for any size has no number here.
    if not isinstance(work, int) or work < (_KEEP_FROM_CUDA if A.is_cuda else _KEEP_FROM):
        return False
    # The ops that keep them have no derivatives of their own.
    recorder = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return recorder is None or not may_be_differentiated_again()


def may_be_differentiated_again() -> bool:
    """Of the graph that is being recorded: torch.compile's graphs are not, others may be."""
    return torch._guards.TracingContext.try_get() is None or torch.compiler.is_exporting()


# Asking torch's engine takes up to 8 us for each leaf that autograd.grad was given. It pays where
# so many elements stand for a matrix product, or, of a form's matrix, for its gradient.
_ASK_FROM = 1 << 19
_ASK_FROM_MATRIX = 1 << 23


def needed(ctx: Any, grad: Tensor, large: Tensor, matrix: Tensor | None = None) -> tuple[bool, ...]:
    """`ctx.needs_input_grad`, less what this backward pass does not ask for.

    The former says what the forward pass was given to differentiate; `torch.autograd.grad(loss, x)`
    wants the gradients on the way to x alone. `large` and the `matrix` of a form tell the work.
    torch has a node for each tensor among the arguments, which come first in all of our functions.
    """
    needs: tuple[bool, ...] = ctx.needs_input_grad
    # Tracing works on subclasses of Tensor; its graphs must not depend on how large sizes are.
    if type(grad) is not Tensor or (
        large.numel() < _ASK_FROM and (matrix is None or matrix.numel() < _ASK_FROM_MATRIX)
    ):
        return needs
    runs = [_will_run(node) for node, _ in ctx.next_functions]
    return (*map(and_, needs, runs), *needs[len(runs) :])


def _will_run(node: Any) -> bool:
    """Whether the backward pass under way runs this node, or ends with what it is given."""
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # a leaf whose gradient autograd.grad returns; or torch cannot say
        return True


def forward_rule(rule: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a static `jvp(ctx, *tangents)` of `rule(ctx, primals, *tangents)`.

    torch calls jvp with forward mode switched off, and switched off it stays for every transform
    around the innermost: a forward derivative of a forward derivative would come out as zero. So it
    is switched on again, on primals that have left their own tangents behind.
    """

    @wraps(rule)
    def jvp(ctx: Any, *tangents: Any) -> Any:
        with forward_ad._set_fwd_grad_enabled(True):
            primals = [
                t if t is None else forward_ad.unpack_dual(t, level=0).primal
                for t in ctx.saved_tensors
            ]
            return rule(ctx, primals, *tangents)

    return jvp


def add(one: Tensor | None, two: Tensor | None) -> Tensor | None:
    """The sum of two terms of a derivative, None standing for zero."""
    if one is None or two is None:
        return one if two is None else two
    return one + two


def add_all(terms: Sequence[Grads], count: int) -> Grads:
    """The sums of the terms of `count` derivatives, None standing for zero."""
    sums: Grads = (None,) * count
    for term in terms:
        sums = tuple(map(add, sums, term))
    return sums


def tangents(terms: Sequence[Grads], *likes: Tensor | None) -> Grads:
    """The sums of the terms of each output's tangent, zeros where there is none to add.

    `likes` are tensors of the outputs' shapes, None where the output is not wanted: torch takes no
    None for the tangent of an output that it has.
    """
    return tuple(
        None if like is None else torch.zeros_like(like) if total is None else total
        for total, like in zip(add_all(terms, len(likes)), likes, strict=True)
    )


def contiguous_copy(tangent: Tensor) -> Tensor:
    """What a rule returns of a tangent as it is: the caller may change its own in place."""
    return tangent.clone(memory_format=torch.contiguous_format)


# --------------------------------------------------------------------------------------------
# Autocast


def autocast(tensor: Any) -> Any:
    """`tensor` as torch.matmul would take it here: floating point below float64 is cast."""
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        return tensor
    device_type = tensor.device.type
    if tensor.dtype == torch.float64 or not torch.amp.is_autocast_available(device_type):
        return tensor
    if not torch.is_autocast_enabled(device_type):
        return tensor
    return tensor.to(torch.get_autocast_dtype(device_type))
