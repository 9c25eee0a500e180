"""The inputs and calls of a case, and the cases of the CPU's benchmark."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor

from ..nn.functional import bilinear as nn_bilinear
from ..ops import bilinear, linear, matmul, quadratic
from . import expressions as ex
from .expressions import Einsum, Function
from .libraries import Library
from .measure import Call, Case, Result, forward_backward

F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
C64, C128 = torch.complex64, torch.complex128
# Of the norm of the error to the norm of the result: some hundred roundings of the operands' or
# the sums' precision, which lie far below what a wrong kernel does.
TOLERANCES = {F64: 1e-12, F32: 1e-4, BF16: 2e-2, F16: 3e-3, C64: 1e-4, C128: 1e-12}
# A few numbers, each the sum of a million, which cancel; a wrong kernel is off by much more.
CANCELLING = {F64: 1e-11, F32: 1e-3, BF16: 0.25, F16: 2e-2, C64: 1e-3, C128: 1e-11}
MAX_SETS = 64
Functions = Mapping[str, Function]  # ours, then the peers
Shape = tuple[int, ...]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def step(function: Function, inputs: Sequence[Tensor], grad: Tensor | None) -> Call:
    """A call for the value, and with `grad` for the gradients of the inputs that need one."""
    if grad is None:
        return lambda: function(*inputs)
    return forward_backward(function, inputs, grad)


@dataclass(frozen=True)
class Plan:
    """A case before its inputs are made: the forward pass, or with `out` the training step."""

    group: str
    name: str
    shapes: tuple[Shape, ...]
    dtype: torch.dtype
    functions: Functions  # ours, then torch's
    work: Einsum  # what they compute: the reference, and what the libraries are asked for
    out: Shape | None = None  # the shape of the value, for the training step
    fixed: tuple[int, ...] = ()  # the positions of inputs that need no gradient
    prepare: Callable[[Tensor], Tensor] | None = None  # changes the last input
    tolerance: float | None = None
    flops: float = 0
    bytes: float = 0
    roof: str = ""
    panel: str = ""  # of the plot against size: the op
    series: str = ""  # the line in there
    size: int = 0


@dataclass(frozen=True)
class CaseMaker:
    """Makes a plan's inputs, and the calls of ours, the peers and the reference."""

    device: str = "cpu"
    cache: int = 0  # bytes; a case has as many sets of inputs as do not fit in there together
    divide: int = 1  # the sizes by this, to try the cases where they would take long
    libraries: Sequence[Library] = ()

    def randn(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        sizes = [max(2, n // self.divide) if self.divide > 1 else n for n in shape]
        made = dtype if dtype.itemsize > 2 else F32
        return torch.randn(sizes, dtype=made, device=self.device).to(dtype)

    def inputs(self, plan: Plan) -> list[list[Tensor]]:
        first = [self.randn(shape, plan.dtype) for shape in plan.shapes]
        size = sum(t.numel() * t.element_size() for t in first)
        count = min(MAX_SETS, 1 + math.ceil(2 * self.cache / size))
        rest = [[self.randn(shape, plan.dtype) for shape in plan.shapes] for _ in range(count - 1)]
        sets = [first, *rest]
        for inputs in sets:
            if plan.prepare is not None:
                inputs[-1] = plan.prepare(inputs[-1])
            for i, tensor in enumerate(inputs):
                tensor.requires_grad_(plan.out is not None and i not in plan.fixed)
        return sets

    def make(self, plan: Plan) -> Case:
        sets = self.inputs(plan)
        out = plan.out
        grads = [None if out is None else self.randn(out, plan.dtype) for _ in sets]

        def in_turn(function: Function) -> Call:
            calls = [step(function, *both) for both in zip(sets, grads, strict=True)]
            if len(calls) == 1:
                return calls[0]
            rotation = itertools.cycle(calls)  # the first call is on the first set
            return lambda: next(rotation)()  # noqa: PLW0108 -- the next one at each call

        def reference(change: Callable[[Tensor], Tensor] = Tensor.detach) -> Result:
            wider = C128 if plan.dtype.is_complex else F64
            wide = [change(t.detach().to(wider)).requires_grad_(t.requires_grad) for t in sets[0]]
            grad = None if grads[0] is None else change(grads[0].to(wider))
            return step(plan.work, wide, grad)()

        (_, ours), *others = plan.functions.items()
        peers = {peer: in_turn(function) for peer, function in others}
        foreign, apart = set(), set()
        for library in self.libraries:
            call = library.call(plan.work, sets[0], grads[0])
            if call is not None:
                peers[library.name] = call
                if library.foreign:
                    foreign.add(library.name)
                if library.spins:
                    apart.add(library.name)
        return Case(
            group=plan.group,
            name=plan.name,
            ours=in_turn(ours),
            peers=peers,
            reference=reference,
            squares=lambda: reference(lambda tensor: tensor.abs().square()),
            tolerance=TOLERANCES[plan.dtype] if plan.tolerance is None else plan.tolerance,
            foreign=frozenset(foreign),
            apart=frozenset(apart),
            flops=plan.flops,
            bytes=plan.bytes,
            roof=plan.roof,
            panel=plan.panel,
            series=plan.series,
            size=plan.size,
        )


# --------------------------------------------------------------------------------------------
# The CPU's cases. `full` adds sizes and dtypes.

FORWARD, STEP = "forward", "forward + backward"


class Arithmetic(TypedDict):
    flops: float
    roof: str


def arithmetic(dtype: torch.dtype, flops: float) -> Arithmetic:
    """The limit of a case that arithmetic bounds, of so many operations on numbers of the dtype."""
    roof = {F64: "float64", C128: "float64", BF16: "bfloat16"}.get(dtype, "float32")
    return {"flops": 4 * flops if dtype.is_complex else flops, "roof": roof}


def small_calls(full: bool) -> Iterator[Plan]:
    """The arithmetic is nothing, the call is all."""
    products: Functions = {"ours": matmul, "torch.matmul": torch.matmul}
    forms: Functions = {
        "ours": bilinear,
        "y @ (A @ x)": ex.composed_bilinear,
        "torch.einsum": ex.BILINEAR,
    }
    squares: Functions = {"ours": quadratic, "x @ (A @ x)": ex.composed_quadratic}
    layers: Functions = {"ours": linear, "F.linear": F.linear}
    for n in (4, 16, 64) if full else (16,):
        for op, functions, work, shapes, result in (
            ("matmul", products, ex.MATMUL, ((n, n), (n, n)), (n, n)),
            ("linear", layers, ex.LINEAR, ((8, n), (n, n), (n,)), (8, n)),
            ("bilinear", forms, ex.BILINEAR, ((n,), (n, n), (n,)), ()),
            ("quadratic", squares, ex.QUADRATIC, ((n,), (n, n)), ()),
        ):
            for kind, out in ((FORWARD, None), (STEP, result)):
                yield Plan(
                    f"call, {op}", f"n = {n}, {kind}", shapes, F32, functions, work, out,
                    tolerance=CANCELLING[F32],
                )  # fmt: skip


PRODUCTS: dict[torch.dtype, tuple[tuple[int, ...], tuple[int, ...]]] = {  # quick and full sizes
    F32: ((128, 256, 512, 1024), (128, 256, 512, 1024, 2048)),
    F64: ((256, 1024), (128, 256, 512, 1024, 2048)),
    BF16: ((256, 1024), (128, 256, 512, 1024, 2048)),
    F16: ((256,), (128, 256, 512)),  # torch's own takes seconds for more
    C64: ((256,), (128, 256, 512, 1024)),
    C128: ((), (128, 256, 512)),
}


def products(full: bool) -> Iterator[Plan]:
    """Matrix products, where arithmetic is the limit."""
    functions: Functions = {"ours": matmul, "torch.matmul": torch.matmul}
    out: Shape | None
    for dtype, sizes in PRODUCTS.items():
        name = name_of(dtype)
        for n in sizes[full]:
            for kind, out, count in ((FORWARD, None, 1), (STEP, (n, n), 3)):
                yield Plan(
                    f"matmul {name}", f"n = {n}, {kind}", ((n, n), (n, n)), dtype, functions,
                    ex.MATMUL, out, panel="matmul", series=f"{name}, {kind}", size=n,
                    **arithmetic(dtype, 2.0 * count * n**3),
                )  # fmt: skip
    for b, n in ((16384, 4), (4096, 16), (512, 64)):
        for kind, out in ((FORWARD, None), (STEP, (b, n, n))):
            yield Plan(
                "matmul float32, batched", f"{b} of {n} x {n}, {kind}", ((b, n, n), (b, n, n)),
                F32, functions, ex.MATMUL_BATCHED, out,
            )  # fmt: skip


def layers(full: bool) -> Iterator[Plan]:
    """Linear layers: few rows and many."""
    functions: Functions = {"ours": linear, "F.linear": F.linear}
    few, many = ((1, 1024), (8, 1024)), ((64, 512), (2048, 512))
    for dtype in (F32, BF16) if full else (F32,):
        for b, n in (*few, *many) if full else (few[1], many[1]):
            for kind, out in ((FORWARD, None), (STEP, (b, n))):
                yield Plan(
                    f"linear {name_of(dtype)}, with bias", f"{b} rows, {n} -> {n}, {kind}",
                    ((b, n), (n, n), (n,)), dtype, functions, ex.LINEAR, out,
                )  # fmt: skip


def vectors(full: bool) -> Iterator[Plan]:
    """A matrix times a vector, where the bytes of the matrix are the limit."""
    functions: Functions = {"ours": matmul, "torch.matmul": torch.matmul}
    for dtype in (F32, F64, BF16) if full else (F32,):
        name = name_of(dtype)
        for n in (256, 1024, 4096, 8192) if full else (256, 1024, 4096):
            matrix = n * n * dtype.itemsize
            for op, work, shapes in (
                ("A x", ex.MATRIX_VECTOR, ((n, n), (n,))),
                ("x A", ex.VECTOR_MATRIX, ((n,), (n, n))),
            ):
                yield Plan(
                    f"{op} {name}", f"n = {n}, {FORWARD}", shapes, dtype, functions, work,
                    bytes=matrix, roof="read", panel=op, series=name, size=n,
                )  # fmt: skip
                if full:
                    yield Plan(
                        f"{op} {name}", f"n = {n}, {STEP}", shapes, dtype, functions, work,
                        out=(n,), bytes=3 * matrix, roof="copy",  # read twice, its gradient written
                    )  # fmt: skip
    outer: Functions = {
        "ours": lambda y, x: matmul(y.unsqueeze(1), x.unsqueeze(0)),
        "torch.outer": torch.outer,
    }
    for n in (1024, 4096) if full else (4096,):
        yield Plan(
            "y xᵀ float32", f"n = {n}, {FORWARD}", ((n,), (n,)), F32, outer, ex.OUTER
        )  # fmt: skip


# Name, functions, work, and how often the bytes of the matrix must be moved for the value, for the
# step without the matrix's gradient, and for the whole step.
FORMS: tuple[tuple[str, Functions, Einsum, tuple[float, float, float]], ...] = (
    (
        "bilinear",
        {"ours": bilinear, "y @ (A @ x)": ex.composed_bilinear, "torch.einsum": ex.BILINEAR},
        ex.BILINEAR,
        (1, 1, 2),
    ),
    (
        "quadratic",
        {"ours": quadratic, "x @ (A @ x)": ex.composed_quadratic, "torch.einsum": ex.QUADRATIC},
        ex.QUADRATIC,
        (1, 1, 2),
    ),
    (
        "symmetric quadratic",
        {
            "ours": lambda x, A: quadratic(x, A, symmetric=True),
            "x @ (A @ x)": ex.composed_quadratic,
            "torch.einsum": ex.QUADRATIC,
        },
        ex.QUADRATIC,
        (0.5, 0.5, 1.5),
    ),
)


def forms(full: bool) -> Iterator[Plan]:
    """One form with a large matrix: its bytes, which a training step reads once and writes once."""
    dtypes = (F32, F64, BF16, C64) if full else (F32,)
    for (op, functions, work, shares), dtype in itertools.product(FORMS, dtypes):
        group = f"{op} {name_of(dtype)}"
        for n in (256, 1024, 4096, 8192) if full else (1024, 4096):
            if dtype != F32 and n > 4096:
                continue
            shapes = ((n,), (n, n), (n,)) if op == "bilinear" else ((n,), (n, n))
            for kind, out, fixed, share in (
                (FORWARD, None, (), shares[0]),
                (f"{STEP} in the vectors", (), (1,), shares[1]),
                (STEP, (), (), shares[2]),
            ):
                yield Plan(
                    group, f"n = {n}, {kind}", shapes, dtype, functions, work, out, fixed,
                    ex.symmetrised if op == "symmetric quadratic" else None, CANCELLING[dtype],
                    bytes=share * n * n * dtype.itemsize, roof="copy" if share > 1 else "read",
                    panel=op, series=f"{name_of(dtype)}, {kind}", size=n,
                )  # fmt: skip


PER_ITEM: Functions = {
    "ours": bilinear,
    "y @ A @ x": ex.composed_per_item,
    "(A @ x * y).sum": ex.weighted_per_item,
    "torch.einsum": ex.BILINEAR_PER_ITEM,
}
# Name, functions, work, and the products of a training step.
SHARED: tuple[tuple[str, Functions, Einsum, int], ...] = (
    (
        "bilinear",
        {
            "ours": bilinear,
            "(y @ A * x).sum": ex.weighted_bilinear,
            "torch.einsum": ex.BILINEAR_SHARED,
        },
        ex.BILINEAR_SHARED,
        3,  # yᵀA, A x, and the matrix's gradient
    ),
    (
        "quadratic",
        {
            "ours": quadratic,
            "(x @ A * x).sum": ex.weighted_quadratic,
            "torch.einsum": ex.QUADRATIC_SHARED,
        },
        ex.QUADRATIC_SHARED,
        2,  # (A + Aᵀ) x, and the matrix's gradient
    ),
)


def batches(full: bool) -> Iterator[Plan]:
    """A small matrix for each item, and one matrix for all of them."""
    out: Shape | None
    for dtype in (F32, BF16) if full else (F32,):
        for b, n in ((4096, 16), (1024, 64)):
            shapes = ((b, n), (b, n, n), (b, n))
            for kind, out, fixed in (
                (FORWARD, None, ()),
                (f"{STEP} in the vectors", (b,), (1,)),
                (STEP, (b,), ()),
            ):
                yield Plan(
                    f"bilinear {name_of(dtype)}, a matrix per item", f"{b} of {n} x {n}, {kind}",
                    shapes, dtype, PER_ITEM, ex.BILINEAR_PER_ITEM, out, fixed,
                    tolerance=CANCELLING[dtype],
                )  # fmt: skip
    for op, functions, work, products in SHARED:
        b = 1024
        for n in (128, 512, 1024) if full else (128, 1024):
            for kind, out, count in ((FORWARD, None, 1), (STEP, (b,), products)):
                yield Plan(
                    f"{op} float32, one matrix for all", f"{b} with {n} x {n}, {kind}",
                    ((b, n), (n, n), (b, n))[: 3 if op == "bilinear" else 2], F32, functions,
                    work, out, tolerance=CANCELLING[F32],
                    **arithmetic(F32, 2.0 * count * b * n * n),
                )  # fmt: skip
    pairs: Functions = {
        "ours": lambda y, A, x: bilinear(y.unsqueeze(2), A, x.unsqueeze(1)),
        "y @ A @ xᵀ": ex.composed_biaffine,
        "torch.einsum": ex.BIAFFINE,
    }
    b, s, n = 16, 64, 256
    for dtype in (F32, BF16) if full else (F32,):
        for kind, out in ((FORWARD, None), (STEP, (b, s, s))):
            yield Plan(
                f"biaffine {name_of(dtype)}, all pairs of two sequences",
                f"{b} of {s} x {s}, width {n}, {kind}",
                ((b, s, n), (n, n), (b, s, n)), dtype, pairs, ex.BIAFFINE, out,
            )  # fmt: skip


NN_BILINEAR: Functions = {
    "ours": nn_bilinear,
    "F.bilinear": F.bilinear,
    "torch.einsum": ex.NN_BILINEAR,
    "outer product @ W": ex.outer_bilinear,
    "(x1 @ W * x2).sum": ex.batched_bilinear,
}


def nn_bilinears(full: bool) -> Iterator[Plan]:
    """The layer nn.Bilinear."""
    for dtype in (F32, BF16) if full else (F32,):
        for b, i, j, o in ((32, 64, 64, 64), (128, 128, 128, 128), (256, 256, 256, 64)):
            if b > 128 and not full:
                continue
            for kind, out, count in ((FORWARD, None, 1), (STEP, (b, o), 3)):
                yield Plan(
                    f"nn bilinear {name_of(dtype)}", f"{b} rows, {i} x {j} -> {o}, {kind}",
                    ((b, i), (b, j), (o, i, j), (o,)), dtype, NN_BILINEAR, ex.NN_BILINEAR, out,
                    **arithmetic(dtype, 2.0 * count * b * o * i * j),
                )  # fmt: skip


TABLES: dict[str, Callable[[bool], Iterator[Plan]]] = {
    "calls": small_calls,
    "products": products,
    "layers": layers,
    "vectors": vectors,
    "forms": forms,
    "batches": batches,
    "nn_bilinear": nn_bilinears,
}
