"""Times matcalc_ext against what torch offers, on the CPU.

Every case is checked against a float64 reference first. Ours and each peer then take turns in one
process, so that a change in the machine's speed meets all of them; a figure is the median of the
rounds, and the ratio is the best peer's time divided by ours (above 1: ours is faster).

    python bench/cpu.py [--threads N] [--rounds N] [--only TEXT] [--json FILE] [--plot FILE]
"""

import argparse
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    Call,
    Case,
    forward_backward,
    measure,
    plot,
    print_rows,
    processor,
    versions,
    write_json,
)
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

import matcalc_ext as mx
from matcalc_ext import _C


def leaf(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, dtype=torch.float64).to(dtype).requires_grad_()


def overhead_cases() -> Iterator[Case]:
    """n = 16: the arithmetic is nothing, the call is all."""
    n, one = 16, torch.ones(())
    y, A, x, B, g = leaf(n), leaf(n, n), leaf(n), leaf(n, n), torch.randn(n, n)
    group = "call overhead, n = 16, forward + backward"
    yield Case(
        group,
        "bilinear",
        forward_backward(mx.bilinear, (y, A, x), one),
        {"y @ (A @ x)": forward_backward(lambda y, A, x: y @ (A @ x), (y, A, x), one)},
        1e-4,
    )
    yield Case(
        group,
        "quadratic",
        forward_backward(mx.quadratic, (x, A), one),
        {"x @ (A @ x)": forward_backward(lambda x, A: x @ (A @ x), (x, A), one)},
        1e-4,
    )
    yield Case(
        group,
        "matmul",
        forward_backward(mx.matmul, (A, B), g),
        {"torch.matmul": forward_backward(torch.matmul, (A, B), g)},
        1e-4,
    )


def matmul_cases() -> Iterator[Case]:
    for dtype, sizes in (
        (torch.float32, (64, 128, 256, 512, 1024)),
        (torch.float64, (64, 128, 256, 512, 1024)),
        (torch.bfloat16, (256, 1024)),
        (torch.float16, (256, 1024)),
        (torch.complex64, (256, 1024)),
    ):
        for n in sizes:
            a, b = leaf(n, n, dtype=dtype), leaf(n, n, dtype=dtype)
            g = leaf(n, n, dtype=dtype).detach()
            # Where an operator rounds differently, results of size sqrt(n) differ by some eps.
            low = dtype.itemsize == 2
            tolerance = 64 * torch.finfo(dtype).eps * (n**0.5 if low else n)
            for kind, ours, theirs in (
                (
                    "forward",
                    lambda a=a, b=b: mx.matmul(a.data, b.data),
                    lambda a=a, b=b: torch.matmul(a.data, b.data),
                ),
                (
                    "forward + backward",
                    forward_backward(mx.matmul, (a, b), g),
                    forward_backward(torch.matmul, (a, b), g),
                ),
            ):
                yield Case(
                    f"matmul {str(dtype)[6:]}, {kind}",
                    f"n = {n}",
                    ours,
                    {"torch.matmul": theirs},
                    tolerance,
                )


def vector_cases() -> Iterator[Case]:
    for n in (256, 1024, 4096):
        A, x = leaf(n, n).detach(), leaf(n).detach()
        for name, ours, theirs in (
            ("A x", lambda A=A, x=x: mx.matmul(A, x), lambda A=A, x=x: A @ x),
            ("x A", lambda A=A, x=x: mx.matmul(x, A), lambda A=A, x=x: x @ A),
        ):
            yield Case("matrix times vector", f"{name}, n = {n}", ours, {"torch": theirs}, 1e-3 * n)


def form_cases() -> Iterator[Case]:
    for n in (256, 1024, 4096):
        y, A, x, one = leaf(n), leaf(n, n), leaf(n), torch.ones(())
        yield Case(
            "bilinear, one matrix, forward + backward",
            f"n = {n}",
            forward_backward(mx.bilinear, (y, A, x), one),
            {"y @ (A @ x)": forward_backward(lambda y, A, x: y @ (A @ x), (y, A, x), one)},
            1e-3 * n,
        )
        fixed = A.detach()
        yield Case(
            "bilinear, gradients of the vectors alone",
            f"n = {n}",
            forward_backward(lambda y, x, A=fixed: mx.bilinear(y, A, x), (y, x), one),
            {"y @ (A @ x)": forward_backward(lambda y, x, A=fixed: y @ (A @ x), (y, x), one)},
            1e-3 * n,
        )
    for batch, n in ((4096, 16), (1024, 64)):
        y, A, x, g = leaf(batch, n), leaf(batch, n, n), leaf(batch, n), torch.randn(batch)

        def einsum(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
            return torch.einsum("bi,bij,bj->b", y, A, x)

        def composed(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
            return (y.unsqueeze(-2) @ A @ x.unsqueeze(-1)).squeeze(-1).squeeze(-1)

        yield Case(
            "bilinear, a matrix per item, forward + backward",
            f"{batch} of {n} x {n}",
            forward_backward(mx.bilinear, (y, A, x), g),
            {
                "einsum": forward_backward(einsum, (y, A, x), g),
                "y @ A @ x": forward_backward(composed, (y, A, x), g),
            },
            1e-3 * n,
        )


def shared_cases() -> Iterator[Case]:
    """One matrix for a whole batch; and one that is symmetric."""
    for n in (1024, 4096):
        x, A, one = leaf(n), leaf(n, n), torch.ones(())
        S = (A.detach() + A.detach().mT).contiguous()
        yield Case(
            "quadratic, symmetric, gradient of the vector",
            f"n = {n}",
            forward_backward(lambda x, S=S: mx.quadratic(x, S, symmetric=True), (x,), one),
            {"x @ (S @ x)": forward_backward(lambda x, S=S: x @ (S @ x), (x,), one)},
            1e-3 * n,
        )
    for batch, n in ((1024, 128), (1024, 1024)):
        y, A, x, g = leaf(batch, n), leaf(n, n), leaf(batch, n), torch.randn(batch)
        yield Case(
            "quadratic, a matrix for all items, forward + backward",
            f"{batch} of {n}",
            forward_backward(mx.quadratic, (x, A), g),
            {
                "(x @ A * x).sum": forward_backward(lambda x, A: ((x @ A) * x).sum(-1), (x, A), g),
                "einsum": forward_backward(
                    lambda x, A: torch.einsum("bi,ij,bj->b", x, A, x), (x, A), g
                ),
            },
            1e-3 * n,
        )
        yield Case(
            "bilinear, a matrix for all items, forward + backward",
            f"{batch} of {n}",
            forward_backward(mx.bilinear, (y, A, x), g),
            {
                "(y @ A * x).sum": forward_backward(
                    lambda y, A, x: ((y @ A) * x).sum(-1), (y, A, x), g
                ),
                "einsum": forward_backward(
                    lambda y, A, x: torch.einsum("bi,ij,bj->b", y, A, x), (y, A, x), g
                ),
            },
            1e-3 * n,
        )
    batch, length, width = 16, 64, 256
    y, A, x = leaf(batch, length, 1, width), leaf(width, width), leaf(batch, 1, length, width)
    g = torch.randn(batch, length, length)
    yield Case(
        "biaffine: all pairs of two sequences, forward + backward",
        f"{batch} of {length} x {length}, width {width}",
        forward_backward(mx.bilinear, (y, A, x), g),
        {
            "einsum": forward_backward(
                lambda y, A, x: torch.einsum("bsi,ij,btj->bst", y.squeeze(2), A, x.squeeze(1)),
                (y, A, x),
                g,
            )
        },
        1e-2 * width,
    )


def nn_bilinear_cases() -> Iterator[Case]:
    for batch, in1, in2, out in ((32, 64, 64, 64), (128, 128, 128, 128), (256, 256, 256, 64)):
        x1, x2 = leaf(batch, in1), leaf(batch, in2)
        weight, bias, g = leaf(out, in1, in2), leaf(out), torch.randn(batch, out)

        def einsum(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            return torch.einsum("bi,oij,bj->bo", x1, weight, x2) + bias

        def outer(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
            pairs = (x1.unsqueeze(-1) * x2.unsqueeze(-2)).flatten(-2)
            return pairs @ weight.flatten(-2).mT + bias

        inputs = (x1, x2, weight, bias)
        yield Case(
            "nn bilinear, forward + backward",
            f"{batch}, {in1} x {in2} -> {out}",
            forward_backward(mx.nn.functional.bilinear, inputs, g),
            {
                "F.bilinear": forward_backward(F.bilinear, inputs, g),
                "einsum": forward_backward(einsum, inputs, g),
                "outer product @ W": forward_backward(outer, inputs, g),
            },
            1e-4 * in1 * in2,
        )


GROUPS = (
    overhead_cases,
    matmul_cases,
    vector_cases,
    form_cases,
    shared_cases,
    nn_bilinear_cases,
)


def check(case: Case) -> None:
    """Raises AssertionError where ours and a peer do not agree."""
    ours = case.ours()
    for peer in case.peers.values():
        theirs = peer()
        pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else ((ours, theirs),)
        for got, expected in pairs:
            torch.testing.assert_close(got, expected, rtol=1e-3, atol=case.tolerance)


def clock(function: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return time.perf_counter() - start


def environment(threads: int) -> dict[str, object]:
    return {
        "processor": processor(),
        "instruction set": _C.cpu_isa(),
        "threads": threads,
        **versions(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Time matcalc_ext against torch on the CPU.")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="only groups whose name contains this text")
    parser.add_argument("--json", type=Path, help="write the rows here too")
    parser.add_argument("--plot", type=Path, help="draw the ratios here, as PNG")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    console = Console()
    where = environment(arguments.threads)
    console.print(", ".join(f"{key}: {value}" for key, value in where.items()))
    rows = []
    cases = [case for group in GROUPS for case in group() if arguments.only in case.group]
    with Progress(console=console, transient=True) as progress:
        for case in progress.track(cases, description="timing"):
            check(case)
            rows.append(measure(case, arguments.rounds, clock, least=0.02))
    print_rows(rows, console)
    if arguments.json:
        write_json(arguments.json, where, rows)
        console.print(f"rows written to {arguments.json}")
    if arguments.plot:
        plot(arguments.plot, "matcalc_ext on the CPU", where, rows)
        console.print(f"plot written to {arguments.plot}")


if __name__ == "__main__":
    main()
