"""What each part of a call costs, in microseconds: matmul of 16 x 16, where the arithmetic is 0.2.

Each line is timed by itself, and is the fastest of the rounds. docs/architecture.md explains them.

    python bench/calls.py
"""

import timeit
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd import Function

import matcalc_ext as mc
from matcalc_ext import _ops
from matcalc_ext.ops._function import fast_apply

N = 16


class Empty(Function):
    """What torch itself takes for a Function of two inputs that computes nothing."""

    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return RESULT

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return a, b


RESULT = torch.zeros(N, N)


def microseconds(call: Callable[[], object]) -> float:
    number = max(1, int(0.02 / timeit.timeit(call, number=100) * 100))
    return min(timeit.repeat(call, number=number, repeat=15)) / number * 1e6


def step(function: Callable[..., Tensor], a: Tensor, b: Tensor, g: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(function(a, b), (a, b), g)


def lines() -> dict[str, Callable[[], object]]:
    a, b, g = (torch.randn(N, N) for _ in range(3))
    x, y = a.clone().requires_grad_(), b.clone().requires_grad_()
    forward, backward = _ops.entry("matmul"), _ops.entry("matmul_backward")
    empty = fast_apply(Empty)
    return {
        "an empty tensor, torch.empty(16, 16)": lambda: torch.empty(N, N),
        "the op below autograd: dispatcher, checks, result, kernel": lambda: forward(a, b),
        "matcalc_ext.matmul, no gradient wanted": lambda: mc.matmul(a, b),
        "torch.matmul, no gradient wanted": lambda: torch.matmul(a, b),
        "a Function that computes nothing, forward": lambda: empty(x, y),
        "matcalc_ext.matmul, gradient wanted": lambda: mc.matmul(x, y),
        "torch.matmul, gradient wanted": lambda: torch.matmul(x, y),
        "the backward op: two products": lambda: backward(g, a, b),
        "a Function that computes nothing, forward + backward": step(empty, x, y, g),
        "matcalc_ext.matmul, forward + backward": step(mc.matmul, x, y, g),
        "torch.matmul, forward + backward": step(torch.matmul, x, y, g),
    }


def main() -> None:
    table = Table("", "us")
    for name, call in lines().items():
        table.add_row(name, f"{microseconds(call):.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
