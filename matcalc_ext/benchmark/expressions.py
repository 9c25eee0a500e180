"""What the cases compute: each in torch.einsum's notation, and as one writes it in plain torch."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Einsum:
    """A product in einsum's notation of some of the inputs, plus a bias where there is one.

    As a function it is both a peer and, in float64, the reference.
    """

    spec: str
    operands: tuple[int, ...]  # positions among the inputs: (0, 1, 0) for a quadratic form
    bias: int | None = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        value = torch.einsum(self.spec, *(inputs[i] for i in self.operands))
        return value if self.bias is None else value + inputs[self.bias]


MATMUL = Einsum("ij,jk->ik", (0, 1))
MATMUL_BATCHED = Einsum("bij,bjk->bik", (0, 1))
MATRIX_VECTOR = Einsum("ij,j->i", (0, 1))
VECTOR_MATRIX = Einsum("i,ij->j", (0, 1))
OUTER = Einsum("i,j->ij", (0, 1))
LINEAR = Einsum("bi,oi->bo", (0, 1), bias=2)
BILINEAR = Einsum("i,ij,j->", (0, 1, 2))
QUADRATIC = Einsum("i,ij,j->", (0, 1, 0))
BILINEAR_PER_ITEM = Einsum("bi,bij,bj->b", (0, 1, 2))
BILINEAR_SHARED = Einsum("bi,ij,bj->b", (0, 1, 2))
QUADRATIC_SHARED = Einsum("bi,ij,bj->b", (0, 1, 0))
BIAFFINE = Einsum("bsi,ij,btj->bst", (0, 1, 2))
NN_BILINEAR = Einsum("bi,oij,bj->bo", (0, 2, 1), bias=3)


def composed_bilinear(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    return y @ (A @ x)


def composed_quadratic(x: Tensor, A: Tensor) -> Tensor:
    return x @ (A @ x)


def composed_per_item(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    return (y.unsqueeze(-2) @ A @ x.unsqueeze(-1)).flatten()


def weighted_per_item(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    return ((A @ x.unsqueeze(-1)).squeeze(-1) * y).sum(-1)


def weighted_bilinear(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    return ((y @ A) * x).sum(-1)


def weighted_quadratic(x: Tensor, A: Tensor) -> Tensor:
    return ((x @ A) * x).sum(-1)


def composed_biaffine(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    return y @ A @ x.mT


def outer_bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x1.unsqueeze(-1) * x2.unsqueeze(-2)).flatten(-2) @ weight.flatten(-2).mT + bias


def batched_bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return ((x1 @ weight) * x2).sum(-1).mT + bias


def symmetrised(A: Tensor) -> Tensor:
    return (A + A.mT) / 2
