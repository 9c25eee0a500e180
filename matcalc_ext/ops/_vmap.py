"""Helpers for the vmap rules, and for torch's first vmap, by which autograd batches gradients."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ._function import Grads, is_batched


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


def any_batched(args: Iterable[Any]) -> bool:
    """Whether any of these belongs to the vmap of `legacy_vmap`, or came of a call under it.

    Asked of what comes out, which takes one question. In a dual level the arguments are asked:
    there the rule for tangents would meet them, and that vmap knows no tangents.
    """
    return any(isinstance(arg, Tensor) and is_batched(arg) for arg in args)
