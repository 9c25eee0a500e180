"""What the dispatcher calls: kernels for torch.ops.matcalc_ext.*, and rules for recorded graphs.

The kernels bring direct calls of an op to the ways of a call that `_function.py` lists.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode

from .. import _ops
from ._errors import refuse
from ._function import (
    Grads,
    autocast,
    autocast_active,
    backward_traced,
    fast_apply,
    grad_enabled,
    may_be_differentiated_again,
    transforms_active,
    unwrap,
)
from ._vmap import any_batched, legacy_vmap

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
        if backward_traced():
            return getattr(torch.ops.matcalc_ext, name)(*args)  # type: ignore[no-any-return]
        if transforms_active():
            return function.apply(*args)  # type: ignore[no-any-return]
        if forward_ad._current_level >= 0 or grad_enabled():
            args = tuple(unwrap(arg) if isinstance(arg, Tensor) else arg for arg in args)
            batched = forward_ad._current_level >= 0 and any_batched(args)
            if batched or any_batched(grads := apply(*args)):
                return legacy_vmap(function.vmap, *args)  # type: ignore[no-any-return]
            return grads  # type: ignore[no-any-return]
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
        if not may_be_differentiated_again():
            return mode.__torch_dispatch__(func, types, args, kwargs or {})
        with mode:
            return differentiable(*args, **(kwargs or {}))

    torch.library.register_torch_dispatch(f"matcalc_ext::_{name}", ProxyTorchDispatchMode, rule)


for _name in _ops.NAMES:
    if hasattr(torch.ops.matcalc_ext, _name):
        _record(_name)
