"""Times matcalc_ext against what torch offers, on a CUDA GPU.

Every case is checked against float64 first, ours and each peer. They then take turns in one
process, timed by CUDA events after a warm-up, on random data, on as many sets of inputs as do not
fit into the L2 cache together. A figure is the median of the rounds, and the ratio is the best
peer's time divided by ours (above 1: ours is faster). Each table becomes a JSON and a PNG file.

    python bench/gpu.py [--out FOLDER] [--only TEXT] [--rounds N]
"""

import argparse
import itertools
import math
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from _common import (
    Call,
    Case,
    Result,
    Row,
    forward_backward,
    measure,
    output_of,
    plot,
    print_rows,
    versions,
    write_json,
)
from rich.console import Console
from torch import Tensor

import matcalc_ext as mx
from matcalc_ext import _C

Function = Callable[..., Tensor]
F32, F64, BF16, F16 = torch.float32, torch.float64, torch.bfloat16, torch.float16
NAMES = {F32: "float32", F64: "float64", BF16: "bfloat16", F16: "float16"}
# Of the norm of the error to the norm of the result: some hundred roundings of the operands' or
# the sums' precision, which lie far below what a wrong kernel does.
TOLERANCES = {F64: 1e-12, F32: 1e-4, BF16: 2e-2, F16: 3e-3}
TF32_TOLERANCE = 3e-3
MAX_SETS = 64


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """torch's own switch, which our products follow as its do."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@dataclass(frozen=True)
class Bench:
    """Makes the cases: their inputs, and the calls of ours, the peers and the reference."""

    device: str
    l2: int  # bytes
    divide: int = 1  # the sizes by this, to try the cases where there is no GPU

    def size(self, n: int) -> int:
        return max(2, n // self.divide)

    def randn(self, *shape: int, dtype: torch.dtype) -> Tensor:
        wide = F64 if dtype == F64 else F32
        return torch.randn(shape, dtype=wide, device=self.device).to(dtype)

    def inputs(self, shapes: Sequence[tuple[int, ...]], dtype: torch.dtype) -> list[list[Tensor]]:
        """Sets of inputs that are together larger than the L2 cache."""
        first = [self.randn(*shape, dtype=dtype) for shape in shapes]
        size = sum(t.numel() * t.element_size() for t in first)
        count = min(MAX_SETS, 1 + math.ceil(2 * self.l2 / size))
        rest = [[self.randn(*shape, dtype=dtype) for shape in shapes] for _ in range(count - 1)]
        return [first, *rest]

    def case(
        self,
        group: str,
        name: str,
        shapes: Sequence[tuple[int, ...]],
        dtype: torch.dtype,
        functions: dict[str, Function],
        plain: Function,
        out: tuple[int, ...] | None = None,
        fixed: Sequence[int] = (),
        prepare: Callable[[Tensor], Tensor] | None = None,
        tolerance: float | None = None,
        **limits: float | str,
    ) -> Case:
        """The forward pass, or with `out`, the shape of the output, the training step.

        `functions` begins with ours; `plain` is the reference. `fixed` are the numbers of inputs
        that need no gradient, and `prepare` changes the last input.
        """
        sets = self.inputs(shapes, dtype)
        grads = [self.randn(*out, dtype=dtype) for _ in sets] if out is not None else []
        for inputs in sets:
            if prepare is not None:
                inputs[-1] = prepare(inputs[-1])
            for i, tensor in enumerate(inputs):
                tensor.requires_grad_(bool(grads) and i not in fixed)

        def in_turn(function: Function) -> Call:
            numbers = itertools.cycle(range(len(sets)))  # the first call is on the first set

            def call() -> Result:
                number = next(numbers)
                return step(function, sets[number], grads[number] if grads else None)

            return call

        def reference() -> Result:
            wide = [t.detach().double().requires_grad_(t.requires_grad) for t in sets[0]]
            return step(plain, wide, grads[0].double() if grads else None)

        (_, ours), *peers = functions.items()
        return Case(
            group=group,
            name=name,
            ours=in_turn(ours),
            peers={peer: in_turn(function) for peer, function in peers},
            tolerance=TOLERANCES[dtype] if tolerance is None else tolerance,
            reference=reference,
            **limits,  # type: ignore[arg-type]
        )


def step(function: Function, inputs: Sequence[Tensor], grad: Tensor | None) -> Result:
    """The value, and with `grad` the gradients of the inputs that need one."""
    if grad is None:
        return function(*inputs)
    return forward_backward(function, inputs, grad)()


# --------------------------------------------------------------------------------------------
# The tables


def products(bench: Bench) -> Iterator[Case]:
    """Matrix products, where arithmetic is the limit."""
    functions = {"ours": mx.matmul, "torch.matmul": torch.matmul}
    for roof, dtype in (
        ("bfloat16", BF16),
        ("float16", F16),
        ("tf32", F32),
        ("float32", F32),
        ("float64", F64),
    ):
        for n in map(bench.size, (4096, 8192)):
            for kind, out, count in (("forward", None, 1), ("forward + backward", (n, n), 3)):
                with tf32(roof == "tf32"):
                    yield bench.case(
                        f"matmul {roof}, {kind}",
                        f"n = {n}",
                        ((n, n), (n, n)),
                        dtype,
                        functions,
                        torch.matmul,
                        out,
                        tolerance=TF32_TOLERANCE if roof == "tf32" else None,
                        flops=2.0 * count * n**3,
                        roof=roof,
                    )


def vectors(bench: Bench) -> Iterator[Case]:
    """A matrix times a vector: the bytes of the matrix."""
    functions = {"ours": mx.matmul, "torch.matmul": torch.matmul}
    for dtype in (F32, BF16):
        for n in map(bench.size, (4096, 16384)):
            matrix = n * n * dtype.itemsize
            for name, shapes in (("A x", ((n, n), (n,))), ("x A", ((n,), (n, n)))):
                group = f"{name} {NAMES[dtype]}"
                yield bench.case(
                    f"{group}, forward",
                    f"n = {n}",
                    shapes,
                    dtype,
                    functions,
                    torch.matmul,
                    bytes=matrix,
                    roof="copy",
                )
                yield bench.case(
                    f"{group}, forward + backward",
                    f"n = {n}",
                    shapes,
                    dtype,
                    functions,
                    torch.matmul,
                    out=(n,),
                    bytes=3 * matrix,  # read twice, and its gradient written
                    roof="copy",
                )


def composed_bilinear(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    return y @ (A @ x)


def composed_quadratic(x: Tensor, A: Tensor) -> Tensor:
    return x @ (A @ x)


def symmetrised(A: Tensor) -> Tensor:
    return (A + A.mT) / 2


# Name, functions, and what share of the matrix's bytes must be moved for the value, for the step
# without the matrix's gradient, and for the whole step.
FORMS = (
    (
        "bilinear",
        {
            "ours": mx.bilinear,
            "y @ (A @ x)": composed_bilinear,
            "einsum": lambda y, A, x: torch.einsum("i,ij,j->", y, A, x),
        },
        (1, 1, 2),
    ),
    (
        "quadratic",
        {
            "ours": mx.quadratic,
            "x @ (A @ x)": composed_quadratic,
            "einsum": lambda x, A: torch.einsum("i,ij,j->", x, A, x),
        },
        (1, 1, 2),
    ),
    (
        "symmetric quadratic",
        {
            "ours": lambda x, A: mx.quadratic(x, A, symmetric=True),
            "x @ (A @ x)": composed_quadratic,
        },
        (0.5, 0.5, 1.5),
    ),
)


def forms(bench: Bench) -> Iterator[Case]:
    """One form with a large matrix: its bytes, which a training step reads once and writes once."""
    for (op, functions, shares), dtype in itertools.product(FORMS, (F32, BF16)):
        for n in map(bench.size, (4096, 16384)):
            bilinear = op == "bilinear"
            for kind, out, fixed, share in (
                ("forward", None, (), shares[0]),
                ("gradients of the vectors", (), (1,), shares[1]),
                ("forward + backward", (), (), shares[2]),
            ):
                yield bench.case(
                    f"{op} {NAMES[dtype]}, {kind}",
                    f"n = {n}",
                    ((n,), (n, n), (n,)) if bilinear else ((n,), (n, n)),
                    dtype,
                    functions,
                    composed_bilinear if bilinear else composed_quadratic,
                    out,
                    fixed,
                    symmetrised if op == "symmetric quadratic" else None,
                    # One number out of millions, which cancel; a wrong kernel is off by much more.
                    {F32: 1e-3, BF16: 5e-2}[dtype],
                    bytes=share * n * n * dtype.itemsize,
                    roof="copy",
                )


def per_item(y: Tensor, A: Tensor, x: Tensor) -> Tensor:
    return torch.einsum("bi,bij,bj->b", y, A, x)


def batches(bench: Bench) -> Iterator[Case]:
    """A small matrix for each item, and one matrix for all of them."""
    each = {
        "ours": mx.bilinear,
        "y @ A @ x": lambda y, A, x: (y.unsqueeze(-2) @ A @ x.unsqueeze(-1)).flatten(),
        "einsum": per_item,
    }
    shared = {
        "ours": mx.quadratic,
        "((x @ A) * x).sum": lambda x, A: ((x @ A) * x).sum(-1),
        "einsum": lambda x, A: torch.einsum("bi,ij,bj->b", x, A, x),
    }
    for dtype in (F32, BF16):
        for items, n in ((65536, 16), (16384, 64)):
            b = bench.size(items)
            for kind, out, share in (("forward", None, 1), ("forward + backward", (b,), 2)):
                yield bench.case(
                    f"bilinear {NAMES[dtype]}, a matrix per item, {kind}",
                    f"{b} of {n} x {n}",
                    ((b, n), (b, n, n), (b, n)),
                    dtype,
                    each,
                    per_item,
                    out,
                    tolerance={F32: 1e-3, BF16: 5e-2}[dtype],
                    bytes=share * b * n * n * dtype.itemsize,
                    roof="copy",
                )
        b, n = bench.size(8192), bench.size(1024)
        for kind, out, count in (("forward", None, 2), ("forward + backward", (b,), 6)):
            yield bench.case(
                f"quadratic {NAMES[dtype]}, one matrix for all, {kind}",
                f"{b} with {n} x {n}",
                ((b, n), (n, n)),
                dtype,
                shared,
                shared["einsum"],
                out,
                tolerance={F32: 1e-3, BF16: 5e-2}[dtype],
                flops=float(count * b * n * n),
                roof=NAMES[dtype],
            )


def einsum_bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.einsum("bi,oij,bj->bo", x1, weight, x2) + bias


def outer_bilinear(x1: Tensor, x2: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (x1.unsqueeze(-1) * x2.unsqueeze(-2)).flatten(-2) @ weight.flatten(-2).mT + bias


def nn_bilinear(bench: Bench) -> Iterator[Case]:
    """The layer: arithmetic, and what the peers keep in memory."""
    functions = {
        "ours": mx.nn.functional.bilinear,
        "F.bilinear": F.bilinear,
        "einsum": einsum_bilinear,
        "outer product @ W": outer_bilinear,
    }
    for dtype in (F32, BF16):
        for sizes in ((256, 256, 256, 64), (1024, 128, 128, 128), (4096, 128, 128, 64)):
            b, i, j, o = map(bench.size, sizes)
            for kind, out, count in (("forward", None, 2), ("forward + backward", (b, o), 8)):
                yield bench.case(
                    f"nn bilinear {NAMES[dtype]}, {kind}",
                    f"{b}, {i} x {j} -> {o}",
                    ((b, i), (b, j), (o, i, j), (o,)),
                    dtype,
                    functions,
                    einsum_bilinear,
                    out,
                    flops=float(count * b * o * i * j),
                    roof=NAMES[dtype],
                )


def overhead(bench: Bench) -> Iterator[Case]:
    """n = 16: the arithmetic is nothing, the calls and launches are all."""
    n = 16
    matmul = {"ours": mx.matmul, "torch.matmul": torch.matmul}
    for op, functions, plain, shapes, out in (
        ("matmul", matmul, torch.matmul, ((n, n), (n, n)), (n, n)),
        ("bilinear", FORMS[0][1], composed_bilinear, ((n,), (n, n), (n,)), ()),
        ("quadratic", FORMS[1][1], composed_quadratic, ((n,), (n, n)), ()),
    ):
        for kind, shape in (("forward", None), ("forward + backward", out)):
            yield bench.case(
                f"call, n = {n}, {kind}", op, shapes, F32, functions, plain, shape, tolerance=1e-3
            )


TABLES: dict[str, Callable[[Bench], Iterator[Case]]] = {
    "products": products,
    "vectors": vectors,
    "forms": forms,
    "batches": batches,
    "nn_bilinear": nn_bilinear,
    "overhead": overhead,
}


# --------------------------------------------------------------------------------------------
# Checking and measuring


def error_of(got: Result, expected: Result) -> float:
    """The largest error of the results, each by norms; infinite for what is not a number."""
    got = got if isinstance(got, tuple) else (got,)
    expected = expected if isinstance(expected, tuple) else (expected,)
    worst = 0.0
    for one, two in zip(got, expected, strict=True):
        error = ((one.double() - two).norm() / two.norm()).item()
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def check(case: Case) -> dict[str, float]:
    """The error of ours and of the peers; drops the peers that cannot do it or do it wrong."""
    assert case.reference is not None
    expected = case.reference()
    errors = {"ours": error_of(case.ours(), expected)}
    for name, peer in list(case.peers.items()):
        try:
            errors[name] = error_of(peer(), expected)
        except (RuntimeError, NotImplementedError):  # out of memory, a dtype that it does not take
            errors[name] = math.inf
        if errors[name] > case.tolerance:
            del case.peers[name]
    if errors["ours"] > case.tolerance:
        raise AssertionError(
            f"{case.group}, {case.name}: off by {errors['ours']:.2g}, allowed {case.tolerance:.2g}"
        )
    return errors


def clock(function: Call, repeats: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        function()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def peak_of(function: Call) -> float:
    """MiB that a call has at once, beside its inputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure_roofs(bench: Bench) -> dict[str, float]:
    """Bytes a second of a large copy, and flops a second of torch's largest products."""

    def best(function: Call) -> float:
        clock(function, 2)
        return min(clock(function, 4) / 4 for _ in range(4))

    def copy_there() -> Tensor:
        return there.copy_(here)

    here = torch.randn(2**28, device=bench.device)
    there = torch.empty_like(here)
    roofs = {"copy": 2 * here.numel() * here.element_size() / best(copy_there)}
    n = 8192
    for name, dtype in (("bfloat16", BF16), ("float16", F16), ("tf32", F32), ("float32", F32)):
        a, b = (bench.randn(n, n, dtype=dtype) for _ in range(2))
        with tf32(name == "tf32"):
            roofs[name] = 2 * n**3 / best(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    a, b = (bench.randn(n // 2, n // 2, dtype=F64) for _ in range(2))
    roofs["float64"] = 2 * (n // 2) ** 3 / best(lambda: a @ b)
    return roofs


def run(case: Case, rounds: int, roofs: dict[str, float]) -> Row:
    errors = check(case)
    row = measure(case, rounds, clock, least=0.01)
    if case.flops:
        row.more["TFLOP/s"] = case.flops / row.ours / 1e12
    if case.bytes:
        row.more["GB/s"] = case.bytes / row.ours / 1e9
    if case.roof:
        row.more["of the roof"] = (case.flops or case.bytes) / row.ours / roofs[case.roof]
    peaks = {name: peak_of(peer) for name, peer in case.peers.items()}
    row.more["peak MiB"] = peak_of(case.ours)
    if peaks:
        row.more["least of the peers"] = min(peaks.values())
    row.more["error"] = errors["ours"]
    left_out = [name for name in errors if name not in {"ours", *case.peers}]
    if left_out:
        row.more["left out"] = ", ".join(left_out)
    return row


def environment(roofs: dict[str, float]) -> dict[str, object]:
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    measured = {name: f"{roof / 1e12:.3g} T/s" for name, roof in roofs.items()}
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver.splitlines()[0] if driver else "unknown",
        "CUDA": torch.version.cuda,
        **versions(),
        "roofs": ", ".join(f"{name} {roof}" for name, roof in measured.items()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Time matcalc_ext against torch on a CUDA GPU.")
    parser.add_argument("--out", type=Path, help="leave a JSON and a PNG file per table here")
    parser.add_argument("--only", default="", help="only groups whose name contains this text")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py: torch sees no CUDA GPU here; bench/cpu.py times the CPU.")
    if not _C.build_info()["cuda"]:
        sys.exit("bench/gpu.py: this build of matcalc_ext has no CUDA kernels; see USE_CUDA=1.")

    torch.manual_seed(0)
    console = Console(width=180)
    bench = Bench("cuda", torch.cuda.get_device_properties(0).L2_cache_size)
    roofs = measure_roofs(bench)
    where = environment(roofs)
    console.print(", ".join(f"{key}: {value}" for key, value in where.items()))
    failed = 0
    for name in arguments.tables:
        rows = []
        for case in TABLES[name](bench):
            if arguments.only not in case.group:
                continue
            try:
                rows.append(run(case, arguments.rounds, roofs))
            except Exception:
                failed += 1
                console.print(f"[red]FAILED {case.group}, {case.name}")
                traceback.print_exc()
        if not rows:
            continue
        print_rows(rows, console)
        if arguments.out:
            write_json(arguments.out / f"{name}.json", where, rows)
            plot(arguments.out / f"{name}.png", name, where, rows)
    if failed:
        console.print(f"[red]{failed} cases failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
