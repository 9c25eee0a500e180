"""`swap`: give a model that was built of `torch.nn` modules the kernels of this package."""

import logging
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from .._ops import FLOATING
from ..ops._errors import DEVICES, not_dense
from .modules import Bilinear, Linear

__all__ = ["Swap", "swap"]

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=torch.nn.Module)

REPLACEMENTS: dict[type[torch.nn.Module], type[torch.nn.Module]] = {
    torch.nn.Linear: Linear,
    torch.nn.Bilinear: Bilinear,
}


class Swap(NamedTuple):
    """What `swap` did with one linear or bilinear module."""

    names: tuple[str, ...]  # every name it has in the model; ("",) for the model itself
    kind: str  # its class before
    replaced: bool
    reason: str  # why it was left as it is; empty where it was replaced

    def __str__(self) -> str:
        names = ", ".join(name or "(the model itself)" for name in self.names)
        outcome = "replaced" if self.replaced else f"left as it is: {self.reason}"
        return f"{names} [{self.kind}]: {outcome}"


# Of torch's tensors that say themselves what an op does with them: those that know ours.
_KNOWN = ("DTensor", "FakeTensor", "FunctionalTensor")


def _unfit(module: torch.nn.Module) -> str:
    """Why the kernels cannot take the parameters of this module; empty where they can."""
    for name in ("weight", "bias"):
        tensor = getattr(module, name)
        if tensor is None:
            continue
        if _multiplies_itself(type(tensor)):
            return f"its {name} is a {type(tensor).__name__}, which has a product of its own"
        kind = not_dense(tensor)
        if kind is not None:
            return f"its {name} is a {kind} tensor"
        if tensor.dtype not in FLOATING:
            return f"its {name} is {str(tensor.dtype).removeprefix('torch.')}"
        if tensor.device.type not in DEVICES:
            return f"its {name} is on {tensor.device}, for which this build has no kernels"
    return ""


def _multiplies_itself(kind: type[Tensor]) -> bool:
    function = getattr(kind.__torch_function__, "__func__", None)  # None: torch's own Parameter
    if function is not None and function is not Tensor.__torch_function__.__func__:  # type: ignore[attr-defined]
        return True
    return kind.__torch_dispatch__ is not Tensor.__torch_dispatch__ and kind.__name__ not in _KNOWN


def swap(model: Model, *, report: list[Swap] | None = None) -> Model:
    """Let every `torch.nn.Linear` and `torch.nn.Bilinear` of a model compute with this package.

    A module keeps its identity: it is given the class `matcalc_ext.nn.Linear` or `Bilinear`, which
    differs from torch's in `forward` alone. So parameters (tied ones too), optimisers that hold
    them, buffers, hooks, the training flag, names and state dictionary stay what they are, and a
    module that is used in several places is still one module.

    Left as they are, and reported: subclasses, which may have a `forward` of their own or be
    handled by their class elsewhere (a parametrized module is one, so is the output projection of
    `torch.nn.MultiheadAttention`), modules whose instance carries its own `forward`, and those
    whose parameters no kernel here reads: sparse and quantised ones, other dtypes and devices, and
    tensors that bring a product of their own.
    `torch.nn.TransformerEncoderLayer` in evaluation mode without gradients may read the weights
    and use a kernel of torch's own; what it returns is the same. Tools that look modules up by
    their exact class, such as `torch.ao.quantization`, are to be used before, and so is
    `torch.jit.script`, which cannot read these modules (`torch.jit.trace`, `torch.export` and
    `torch.compile` can). Under autocast a swapped Bilinear computes in the lower precision, as
    matrix products do, which torch's does not on the CPU.

    Args:
        model: any module; it is changed in place. It may itself be a Linear or Bilinear.
        report: a list that gets one `Swap` per linear or bilinear module, replaced or not. The
            same lines are logged to the logger `matcalc_ext.nn.swap` at level INFO.

    Returns:
        The model, the same object.

    Raises:
        TypeError: `model` is not a `torch.nn.Module`.

    Example:
        >>> import torch, matcalc_ext
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 256), torch.nn.GELU())
        >>> report = []
        >>> model = matcalc_ext.nn.swap(model, report=report)
        >>> print(report[0])
        0 [torch.nn.modules.linear.Linear]: replaced
    """
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"swap: model is a {type(model).__name__}, expected a torch.nn.Module")
    # The whole model is looked at before anything is changed.
    found: dict[torch.nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        theirs = isinstance(module, tuple(REPLACEMENTS))
        if theirs and not isinstance(module, (Linear, Bilinear)):
            found.setdefault(module, []).append(name)
    for module, names in found.items():
        before = type(module)
        reason = ""
        if before not in REPLACEMENTS:
            reason = "a subclass, not the class itself"
        elif "forward" in vars(module):
            reason = "this instance has a forward of its own"
        else:
            reason = _unfit(module)
        if not reason:
            module.__class__ = REPLACEMENTS[before]
        kind = f"{before.__module__}.{before.__qualname__}"
        entry = Swap(tuple(names), kind, replaced=not reason, reason=reason)
        logger.info("%s", entry)
        if report is not None:
            report.append(entry)
    return model
