"""The self-test behind `python -m matcalc_ext check`: every op and derivative on this CPU.

Each op runs in each dtype on each instruction set of the CPU (no GPU is tested). Its value,
gradient, forward derivative and second derivative are compared with those of plain torch in double
precision; in double precision itself torch's gradcheck and gradgradcheck compare them with finite
differences as well.
"""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from torch import Tensor
from torch.autograd.gradcheck import GradcheckError

from . import _C
from .ops import bilinear, linear, matmul, nn_bilinear, quadratic

DTYPES = (
    torch.float64,
    torch.float32,
    torch.bfloat16,
    torch.float16,
    torch.complex128,
    torch.complex64,
)
SHOWN = 30  # failures that are printed; the rest is counted
Tensors = Sequence[Tensor]
Function = Callable[..., Tensor]


@dataclass(frozen=True)
class Op:
    """One op: ours, the same in plain torch, and input shapes for comparing and for gradcheck."""

    name: str
    ours: Function
    plain: Function
    shapes: tuple[tuple[int, ...], ...]
    small: tuple[tuple[int, ...], ...]


def _symmetric(A: Tensor) -> Tensor:
    return (A + A.mT) / 2


# The larger sizes cross the block sizes of the kernels and leave a remainder in each direction.
OPS = (
    Op("matmul", matmul, torch.matmul, ((70, 131), (131, 67)), ((2, 3), (3, 2))),
    Op("matmul batched", matmul, torch.matmul, ((3, 1, 9, 17), (2, 17, 5)), ((2, 1, 3), (3, 2))),
    Op("matmul vector", matmul, torch.matmul, ((131,), (2, 131, 70)), ((3,), (2, 3, 2))),
    Op(
        "linear",
        linear,
        lambda input, weight, bias: input @ weight.mT + bias,
        ((3, 19, 67), (33, 67), (33,)),
        ((2, 3), (2, 3), (2,)),
    ),
    Op(
        "bilinear",
        bilinear,
        lambda y, A, x: torch.einsum("...m,...mn,...n->...", y, A, x),
        ((131,), (131, 70), (70,)),
        ((2,), (2, 3), (3,)),
    ),
    Op(
        "bilinear batched",
        bilinear,
        lambda y, A, x: torch.einsum("...m,...mn,...n->...", y, A, x),
        ((4, 1, 19), (19, 33), (5, 33)),
        ((2, 1, 2), (2, 3), (2, 3)),
    ),
    Op(
        "quadratic",
        quadratic,
        lambda x, A: torch.einsum("...m,...mn,...n->...", x, A, x),
        ((5, 70), (70, 70)),
        ((2, 3), (3, 3)),
    ),
    # Symmetric forms are functions of symmetric matrices: any other direction leaves their domain.
    Op(
        "quadratic symmetric",
        lambda x, A: quadratic(x, _symmetric(A), symmetric=True),
        lambda x, A: torch.einsum("...m,...mn,...n->...", x, _symmetric(A), x),
        ((2, 70), (2, 70, 70)),
        ((3,), (3, 3)),
    ),
    Op(
        "nn_bilinear",
        nn_bilinear,
        lambda x1, x2, W, b: torch.einsum("...i,oij,...j->...o", x1, W, x2) + b,
        ((2, 5, 19), (2, 5, 33), (7, 19, 33), (7,)),
        ((2, 2), (2, 3), (2, 2, 3), (2,)),
    ),
)


def _value(f: Function, inputs: Tensors, cotangent: Tensor, tangents: Tensors) -> Tensors:
    return [f(*inputs)]


def _gradient(f: Function, inputs: Tensors, cotangent: Tensor, tangents: Tensors) -> Tensors:
    inputs = [t.clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(f(*inputs), inputs, cotangent)


def _jvp(f: Function, inputs: Tensors, cotangent: Tensor, tangents: Tensors) -> Tensors:
    return [torch.func.jvp(f, tuple(inputs), tuple(tangents))[1]]


def _second(f: Function, inputs: Tensors, cotangent: Tensor, tangents: Tensors) -> Tensors:
    inputs = [t.clone().requires_grad_() for t in (*inputs, cotangent)]
    *inputs, cotangent = inputs
    gradients = torch.autograd.grad(f(*inputs), inputs, cotangent, create_graph=True)
    return torch.autograd.grad(
        gradients, [*inputs, cotangent], tangents, allow_unused=True, materialize_grads=True
    )


# How often a result is rounded to the op's dtype on its way: once in a kernel, more often where
# autograd adds up the results of several.
COMPARISONS = {
    "value": (_value, 1),
    "gradient": (_gradient, 2),
    "forward derivative": (_jvp, 4),
    "second derivative": (_second, 8),
}


def _random(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    wide = torch.complex128 if dtype.is_complex else torch.float64
    return torch.randn(shape, dtype=wide, generator=generator).to(dtype)


def compare(op: Op, what: str, dtype: torch.dtype) -> str | None:
    """Compares one op with plain torch in double precision; what is wrong, or None.

    An element may be off by a few roundings of the sum of the absolute values of its terms, which
    the reference gives when it is fed with absolute values.
    """
    compute, roundings = COMPARISONS[what]
    generator = torch.Generator().manual_seed(len(op.name))
    inputs = [_random(shape, dtype, generator) for shape in op.shapes]
    tangents = [_random(shape, dtype, generator) for shape in op.shapes]
    wide = torch.complex128 if dtype.is_complex else torch.float64
    cotangent = _random(op.ours(*inputs).shape, dtype, generator)

    def converted(convert: Callable[[Tensor], Tensor]) -> tuple[Tensors, Tensor, Tensors]:
        return [*map(convert, inputs)], convert(cotangent), [*map(convert, tangents)]

    got = compute(op.ours, inputs, cotangent, tangents)
    with _one_thread():
        expected = compute(op.plain, *converted(lambda t: t.to(wide)))
        sizes = compute(op.plain, *converted(lambda t: t.to(wide).abs()))
        return _difference(got, expected, sizes, dtype, roundings)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Small work on one thread: on a busy machine, waiting for others costs far more."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _difference(
    got: Tensors, expected: Tensors, sizes: Tensors, dtype: torch.dtype, roundings: int
) -> str | None:
    """The first element that is further off than its size allows, in words, or None."""
    kept = torch.finfo(dtype)
    summed = min(kept.eps, torch.finfo(torch.float32).eps)  # low precisions accumulate in float32
    for i, (g, e, size) in enumerate(zip(got, expected, sizes, strict=True)):
        which = f"output {i}: " if len(got) > 1 else ""
        if g.dtype != dtype or g.shape != e.shape:
            return f"{which}got {g.dtype} {tuple(g.shape)}, expected {dtype} {tuple(e.shape)}"
        error = (g.to(e.dtype) - e).abs()
        # The last term is the spacing of numbers near 0, where a rounding is not relative.
        allowed = (32 * summed + roundings * kept.eps) * size + roundings * kept.eps * kept.tiny
        wrong = ~(error <= allowed)  # a NaN is wrong too
        if wrong.any():
            worst = (error - allowed).nan_to_num(math.inf).argmax()
            index = [int(k) for k in torch.unravel_index(worst, e.shape)] if e.dim() else []
            return (
                f"{which}at {index} got {g.flatten()[worst].item():.9g}, expected "
                f"{e.flatten()[worst].item():.9g} ± {allowed.flatten()[worst].item():.1e} "
                f"({int(wrong.sum())} of {e.numel()} elements are wrong)"
            )
    return None


def differentiate(op: Op, what: str, dtype: torch.dtype) -> str | None:
    """Compares derivatives with finite differences; what is wrong, or None."""
    generator = torch.Generator().manual_seed(len(op.name))
    inputs = tuple(_random(shape, dtype, generator).requires_grad_() for shape in op.small)
    try:
        with _one_thread():
            if what == "gradcheck":
                torch.autograd.gradcheck(op.ours, inputs, check_forward_ad=True)
            else:
                torch.autograd.gradgradcheck(op.ours, inputs, check_fwd_over_rev=True)
    except GradcheckError as error:
        return " ".join(str(error).split())
    return None


def _integers() -> str | None:
    a, b = torch.arange(6).reshape(2, 3), torch.arange(12).reshape(3, 4)
    expected = torch.tensor([[20, 23, 26, 29], [56, 68, 80, 92]])
    got = matmul(a, b)
    return None if torch.equal(got, expected) else f"got {got.tolist()}, expected 2x3 by 3x4"


@dataclass(frozen=True)
class Check:
    """One thing to test: `run` returns what is wrong, or None."""

    name: str
    isa: str
    run: Callable[[], str | None]


def checks() -> Iterator[Check]:
    """All checks that this machine can run, by instruction set."""
    for isa in _C.cpu_isas():
        for dtype, op in itertools.product(DTYPES, OPS):
            name = f"{isa} {str(dtype).removeprefix('torch.')} {op.name}"
            for what in COMPARISONS:
                yield Check(f"{name}: {what}", isa, partial(compare, op, what, dtype))
            if dtype in (torch.float64, torch.complex128):
                for what in ("gradcheck", "gradgradcheck"):
                    yield Check(f"{name}: {what}", isa, partial(differentiate, op, what, dtype))
        yield Check(f"{isa} int64 matmul: value", isa, _integers)


def run(console: Console | None = None) -> int:
    """Runs all checks under a progress bar, prints failures and a verdict; how many failed."""
    console = console or Console()
    todo = list(checks())
    failed = 0
    before, start = _C.cpu_isa(), time.perf_counter()
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=len(todo))
        try:
            for check in todo:
                progress.update(task, description=check.name)
                _C.set_cpu_isa(check.isa)
                try:
                    wrong = check.run()
                except Exception as error:  # whatever it is, it is this check's verdict
                    wrong = f"raised {type(error).__name__}: {error}"
                if wrong is not None:
                    failed += 1
                    if failed <= SHOWN:
                        line = f"FAILED {check.name}: {wrong}"
                        console.print(line, markup=False, highlight=False, soft_wrap=True)
                progress.advance(task)
            progress.update(task, description="done")
        finally:
            _C.set_cpu_isa(before)
    if failed > SHOWN:
        console.print(f"and {failed - SHOWN} more", highlight=False)
    seconds = time.perf_counter() - start
    passed = f"{len(todo) - failed} of {len(todo)} checks passed in {seconds:.0f} s"
    verdict = "something is wrong on this machine" if failed else "all is well"
    console.print(f"{passed}: {verdict}.", style="red" if failed else "green", highlight=False)
    return failed
