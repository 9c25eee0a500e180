"""What the ops have in common: the ways a call can take, and helpers for the rules.

A public function takes one of four ways, from the rarest to the cheapest:

1. torch.compile or torch.jit.trace is at work: the dispatcher op, which the graph keeps as a node.
2. A torch.func transform is active: `Function.apply`, which knows the transforms (20 us).
3. A gradient or a tangent is wanted: the `apply` of the C base class of Function (5 us). It runs
   the same static methods, without binding a signature at each call first.
4. Nothing is wanted: the dispatcher op, below autograd.

A direct call of `torch.ops.matcalc_ext.*`, the node of a compiled graph among them, comes from the
dispatcher to the same ways by the kernels that `register` adds. They all end at the same kernels
under a name that begins with "_", where autograd, autocast and transforms are no longer asked.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import wraps
from operator import and_
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from .. import _ops

# Looked up once: they are used at each call.
transforms_active: Callable[[], bool] = torch._C._are_functorch_transforms_active
autocast_active: Callable[[], bool] = torch._C._is_any_autocast_enabled
compiling: Callable[[], bool] = torch.compiler.is_compiling
# A formula of a Function: compiled autograd traces what a backward pass calls.
dynamo_tracing: Callable[[], bool] = torch.compiler.is_dynamo_compiling
tracing: Callable[[], bool] = torch._C._is_tracing  # by torch.jit.trace
grad_enabled: Callable[[], bool] = torch.is_grad_enabled
# A tensor that outlived its transform (one saved for the backward pass of torch.func.vjp, say)
# stands for the tensor inside it; the dispatcher unwraps it, Function's C base class does not.
unwrap: Callable[[Tensor], Tensor] = torch._C._functorch.unwrap_if_dead
is_batched: Callable[[Tensor], bool] = torch._C._functorch.is_legacy_batchedtensor

Grads = tuple[Tensor | None, ...]


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
        grad_enabled() or forward_ad._current_level >= 0 or transforms_active() or dynamo_tracing()
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
    return recorder is None or not _may_be_differentiated_again()


def _may_be_differentiated_again() -> bool:
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


# --------------------------------------------------------------------------------------------
# vmap


class Batch(NamedTuple):
    """The part of torch's vmap info that the rules read."""

    batch_size: int


def logical_shape(tensor: Tensor, dim: int | None) -> list[int]:
    """The shape of one sample, where dimension `dim` is the one that vmap runs along."""
    shape = list(tensor.shape)
    if dim is not None:
        del shape[dim]
    return shape


def batch_first(
    tensor: Tensor, dim: int | None, own: int, rank: int, size: int | None = None
) -> Tensor:
    """`tensor` with the vmapped dimension first, then `rank` batch dimensions, then its `own`.

    Without the dimension it is left as it is, for broadcasting to repeat it; with `size` it is
    expanded, which an operand must be where each sample has a gradient of its own.
    """
    if dim is not None:
        tensor = tensor.movedim(dim, 0)
    elif size is not None:
        tensor = tensor.expand(size, *tensor.shape)
    else:
        return tensor
    for _ in range(rank - (tensor.dim() - 1 - own)):
        tensor = tensor.unsqueeze(1)
    return tensor


def sample_shapes(
    grads: Sequence[Tensor | None], size: int, *shapes: Sequence[int]
) -> tuple[Grads, tuple[int | None, ...]]:
    """What a vmap rule of a backward op returns: each gradient with the shape of its samples."""
    outputs = tuple(
        None if grad is None else grad.reshape(size, *shape)
        for grad, shape in zip(grads, shapes, strict=True)
    )
    return outputs, tuple(None if grad is None else 0 for grad in grads)


_VMAP_LEVELS = 64


def legacy_vmap(rule: Callable[..., Any], *args: Any) -> Any:
    """`rule` for a call under the vmap behind `torch.autograd.grad(is_grads_batched=True)`.

    That is torch's first vmap, which autograd keeps for batches of gradients.
    """
    # Asking for the level means entering the next one.
    level = torch._C._vmapmode_increment_nesting() - 1
    torch._C._vmapmode_decrement_nesting()
    # The level is the thread's, and the backward pass of a GPU has a thread of its own, where it is
    # 0: then all that torch has.
    for current in range(level or _VMAP_LEVELS, 0, -1):
        operands: list[Any] = []
        in_dims: list[int | None] = []
        size = 0
        for arg in args:
            # Comes back with the batch in dimension 0, expanded to size 0 if it had none.
            is_one = isinstance(arg, Tensor) and is_batched(arg)
            moved = torch._remove_batch_dim(arg, current, 0, 0) if is_one else None
            batched = moved is not None and moved.shape[0] > 0
            operands.append(moved if batched else arg)
            in_dims.append(0 if batched else None)
            size = moved.shape[0] if moved is not None and batched else size
        if size == 0:
            continue
        outputs, out_dims = rule(Batch(size), tuple(in_dims), *operands)
        if isinstance(outputs, Tensor):
            return torch._add_batch_dim(outputs, out_dims, current)
        return tuple(
            out if out is None or dim is None else torch._add_batch_dim(out, dim, current)
            for out, dim in zip(outputs, out_dims, strict=True)
        )
    raise RuntimeError("matcalc_ext: batched tensors outside of the vmap that made them")


def any_batched(grads: Grads) -> bool:
    """Whether a call under the vmap of `legacy_vmap` brought these."""
    return any(grad is not None and is_batched(grad) for grad in grads)


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


# --------------------------------------------------------------------------------------------
# Errors


def symbolic(*arguments: Any) -> bool:
    """Whether torch.fx traces a program: its graph holds the dispatcher op.

    It calls with objects that are no tensors, so that asking can wait until something has failed.
    """
    return any(isinstance(argument, torch.fx.Proxy) for argument in arguments)


DEVICES = ("cpu", "meta", *(["cuda"] if _ops._C.build_info()["cuda"] else []))


def refuse(op: str, **arguments: Any) -> None:
    """Raises what the kernels cannot say about arguments they never see, if that is what failed.

    From here, in the place of the error that is being handled. (Were it returned to be raised, the
    frame that held it would stay, with all operands, until the garbage collector found the cycle.)
    """
    for name, value in arguments.items():
        if value is None and name == "bias":
            continue
        if not isinstance(value, Tensor):
            raise TypeError(
                f"{op}: {name} is a {type(value).__name__}, expected a torch.Tensor"
            ) from None
        kind = not_dense(value)
        if kind is not None:
            raise RuntimeError(
                f"{op}: {name} is a {kind} tensor, expected a dense tensor (torch.strided)"
            ) from None
    tensors = {name: value for name, value in arguments.items() if value is not None}
    first_name, first = next(iter(tensors.items()))
    for name, tensor in tensors.items():
        if tensor.device != first.device:
            raise RuntimeError(
                f"{op}: {first_name} is on {first.device} and {name} is on {tensor.device}, "
                "expected one device for all operands"
            ) from None
    if first.device.type not in DEVICES:
        has = "the CPU and for CUDA" if "cuda" in DEVICES else "the CPU"
        raise RuntimeError(
            f"{op}: {first_name} is on {first.device}, but this build of matcalc_ext has kernels "
            f"for {has} only: move the operands with .cpu()"
        ) from None


def not_dense(tensor: Tensor) -> str | None:
    """What kind of tensor it is, of those that the kernels do not read, or None."""
    if tensor.is_nested:
        return "nested"
    if tensor.is_quantized:
        return "quantized"
    if tensor.layout == torch.strided:
        return None
    name = str(tensor.layout).removeprefix("torch.")
    return "MKL-DNN" if name == "_mkldnn" else name.replace("_", " ")


# --------------------------------------------------------------------------------------------
# Kernels for direct calls of torch.ops.matcalc_ext.*

_library = torch.library.Library("matcalc_ext", "IMPL")
_AUTOCAST_KEYS = ("AutocastCPU", "AutocastCUDA")
_AUTOCAST_SET = torch._C.DispatchKeySet(torch._C.DispatchKey.AutocastCPU) | torch._C.DispatchKeySet(
    torch._C.DispatchKey.AutocastCUDA
)
_REFUSED_KEYS = (
    *("SparseCPU", "SparseCsrCPU", "QuantizedCPU", "MkldnnCPU", "NestedTensorCPU"),
    *("SparseCUDA", "SparseCsrCUDA", "QuantizedCUDA", "NestedTensorCUDA"),
    *("SparseMeta", "SparseCsrMeta", "NestedTensorMeta"),
)


def register(
    name: str,
    function: type[Function],
    route: Callable[..., Any],
    apply: Callable[..., Any],
    *,
    casts: bool = False,
) -> None:
    """Brings direct calls of the dispatcher op `name` to `route`, which applies `function`.

    `apply` is its `fast_apply`. `casts`: whether autocast lowers its arguments, which it does for
    the forward ops.
    """
    overload = getattr(torch.ops.matcalc_ext, name).default
    inner = _ops.entry(name)
    schema = overload._schema

    def arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        """All arguments in the schema's order; the dispatcher leaves defaults out."""
        for i, argument in enumerate(schema.arguments):
            if i < len(args):
                yield args[i]
            else:
                yield kwargs.get(argument.name, argument.default_value)

    def autograd_kernel(*args: Any, **kwargs: Any) -> Any:
        if not grad_enabled() and forward_ad._current_level < 0:
            return inner(*args, **kwargs)
        return apply(*arguments(args, kwargs))

    def transform_kernel(*args: Any, **kwargs: Any) -> Any:
        if casts and autocast_active():
            args = tuple(autocast(arg) for arg in args)
        return route(*arguments(args, kwargs))

    def autocast_kernel(*args: Any, **kwargs: Any) -> Any:
        args = tuple(autocast(arg) for arg in args)  # autocast looks whether the key is excluded
        with torch._C._ExcludeDispatchKeyGuard(_AUTOCAST_SET):
            return overload(*args, **kwargs)

    def batched_kernel(*args: Any, **kwargs: Any) -> Any:
        return legacy_vmap(function.vmap, *arguments(args, kwargs))

    def refusing_kernel(*args: Any, **kwargs: Any) -> Any:
        names = (argument.name for argument in schema.arguments)
        named = zip(names, arguments(args, kwargs), strict=True)
        tensors = {n: value for n, value in named if isinstance(value, Tensor)}
        refuse(name, **tensors)
        raise RuntimeError(f"{name}: expected dense tensors")

    _library.impl(name, autograd_kernel, "Autograd")
    _library.impl(name, transform_kernel, "FuncTorchDynamicLayerFrontMode")
    for each in (name, f"_{name}"):
        _library.impl(each, batched_kernel, "Batched")
        for key in _REFUSED_KEYS:
            _library.impl(each, refusing_kernel, key)
    if casts:
        for key in _AUTOCAST_KEYS:
            _library.impl(name, autocast_kernel, key)


def backward_route(name: str, function: type[Function]) -> Callable[..., Grads]:
    """What applies `function`, the backward op `name`, by the cheapest way that is right here.

    Direct calls of the op come to it too.
    """
    inner, apply = _ops.entry(name), fast_apply(function)

    def route(*args: Any) -> Grads:
        if dynamo_tracing():
            return getattr(torch.ops.matcalc_ext, name)(*args)  # type: ignore[no-any-return]
        if transforms_active():
            return function.apply(*args)  # type: ignore[no-any-return]
        if forward_ad._current_level >= 0 or grad_enabled():
            args = tuple(unwrap(arg) if isinstance(arg, Tensor) else arg for arg in args)
            grads: Grads = apply(*args)
            if any_batched(grads):
                return legacy_vmap(function.vmap, *args)  # type: ignore[no-any-return]
            return grads
        return inner(*args)  # type: ignore[no-any-return]

    register(name, function, route, apply)
    return route


# Inside a Function there is nothing left to differentiate: the dispatcher goes straight on.
for _name in _ops.NAMES:
    _library.impl(f"_{_name}", torch.library.fallthrough_kernel, "Autograd")

# --------------------------------------------------------------------------------------------
# Graphs that make_fx records, and torch.export where it takes a program apart


def _record(name: str) -> None:
    """Has such a graph hold the op that has derivatives, for it may be differentiated again."""
    differentiable = getattr(torch.ops.matcalc_ext, name).default

    def rule(mode: Any, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not _may_be_differentiated_again():
            return mode.__torch_dispatch__(func, types, args, kwargs or {})
        with mode:
            return differentiable(*args, **(kwargs or {}))

    torch.library.register_torch_dispatch(f"matcalc_ext::_{name}", ProxyTorchDispatchMode, rule)


for _name in _ops.NAMES:
    if hasattr(torch.ops.matcalc_ext, _name):
        _record(_name)
