"""`swap`: give a model that was built of `torch.nn` modules the kernels of this package."""

import logging
from typing import NamedTuple, TypeVar

import torch

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


def swap(model: Model, *, report: list[Swap] | None = None) -> Model:
    """Let every `torch.nn.Linear` and `torch.nn.Bilinear` of a model compute with this package.

    A module keeps its identity: it is given the class `matcalc_ext.nn.Linear` or `Bilinear`, which
    differs from torch's in `forward` alone. So parameters (tied ones too), optimisers that hold
    them, buffers, hooks, the training flag, names and state dictionary stay what they are, and a
    module that is used in several places is still one module.

    Left as they are, and reported: subclasses, which may have a `forward` of their own or be
    handled by their class elsewhere (a parametrized module is one, so is the output projection of
    `torch.nn.MultiheadAttention`), and modules whose instance carries its own `forward`.
    `torch.nn.TransformerEncoderLayer` in evaluation mode without gradients may read the weights
    and use a kernel of torch's own; what it returns is the same. Tools that look modules up by
    their exact class, such as `torch.ao.quantization`, are to be used before.

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
        raise TypeError(f"swap: model must be a torch.nn.Module, got {type(model).__name__}")
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
            module.__class__ = REPLACEMENTS[before]
        kind = f"{before.__module__}.{before.__qualname__}"
        entry = Swap(tuple(names), kind, replaced=not reason, reason=reason)
        logger.info("%s", entry)
        if report is not None:
            report.append(entry)
    return model
