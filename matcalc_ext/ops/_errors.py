"""What the kernels cannot say about arguments that they never see."""

from typing import Any

import torch
from torch import Tensor

from .. import _ops


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
