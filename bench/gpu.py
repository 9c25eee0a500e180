"""Times matcalc_ext against what torch offers, on a CUDA GPU.

Every case is checked against float64 first, ours and each peer. They then take turns in one
process, timed by CUDA events after a warm-up, on random data, on as many sets of inputs as do not
fit into the L2 cache together. A figure is the median of the rounds, and the ratio is the best
peer's time divided by ours (above 1: ours is faster). Each table becomes a JSON and a PNG file.

    python bench/gpu.py [--out FOLDER] [--only TEXT] [--rounds N]
"""

import argparse
import itertools
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from rich.console import Console
from torch import Tensor

import matcalc_ext as mc
from matcalc_ext import _C
from matcalc_ext.benchmark import expressions as ex
from matcalc_ext.benchmark.cases import (
    BF16,
    CANCELLING,
    F16,
    F32,
    F64,
    FORMS,
    FORWARD,
    NN_BILINEAR,
    PER_ITEM,
    SHARED,
    STEP,
    CaseMaker,
    Functions,
    Plan,
    name_of,
)
from matcalc_ext.benchmark.measure import Call, Effort, measure
from matcalc_ext.benchmark.plots import plot_ratios
from matcalc_ext.benchmark.report import (
    output_of,
    print_rows,
    sentence,
    show_roofs,
    versions,
    write_json,
)

TF32_TOLERANCE = 3e-3
EFFORT = Effort(rounds=7, least=0.01)


@contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """torch's own switch, which our products follow as its do."""
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = "tf32" if allowed else "ieee"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


# --------------------------------------------------------------------------------------------
# The tables

MATMUL: Functions = {"ours": mc.matmul, "torch.matmul": torch.matmul}


def products() -> Iterator[Plan]:
    """Matrix products, where arithmetic is the limit. TF32 is on as long as its case is in hand."""
    for roof, dtype in (
        ("bfloat16", BF16),
        ("float16", F16),
        ("tf32", F32),
        ("float32", F32),
        ("float64", F64),
    ):
        for n in (4096, 8192):
            for kind, out, count in ((FORWARD, None, 1), (STEP, (n, n), 3)):
                with tf32(roof == "tf32"):
                    yield Plan(
                        f"matmul {roof}", f"n = {n}, {kind}", ((n, n), (n, n)), dtype, MATMUL,
                        ex.MATMUL, out, tolerance=TF32_TOLERANCE if roof == "tf32" else None,
                        flops=2.0 * count * n**3, roof=roof,
                    )  # fmt: skip


def vectors() -> Iterator[Plan]:
    """A matrix times a vector: the bytes of the matrix."""
    for dtype, n in itertools.product((F32, BF16), (4096, 16384)):
        matrix = n * n * dtype.itemsize
        for op, work, shapes in (
            ("A x", ex.MATRIX_VECTOR, ((n, n), (n,))),
            ("x A", ex.VECTOR_MATRIX, ((n,), (n, n))),
        ):
            # The step reads the matrix twice and writes its gradient.
            for kind, out, count in ((FORWARD, None, 1), (STEP, (n,), 3)):
                yield Plan(
                    f"{op} {name_of(dtype)}", f"n = {n}, {kind}", shapes, dtype, MATMUL, work,
                    out, bytes=count * matrix, roof="copy",
                )  # fmt: skip


def forms() -> Iterator[Plan]:
    """One form with a large matrix: its bytes, which a training step reads once and writes once."""
    for (op, functions, work, shares), dtype in itertools.product(FORMS, (F32, BF16)):
        for n in (4096, 16384):
            for kind, out, fixed, share in (
                (FORWARD, None, (), shares[0]),
                (f"{STEP} in the vectors", (), (1,), shares[1]),
                (STEP, (), (), shares[2]),
            ):
                yield Plan(
                    f"{op} {name_of(dtype)}", f"n = {n}, {kind}",
                    ((n,), (n, n), (n,)) if op == "bilinear" else ((n,), (n, n)), dtype,
                    functions, work, out, fixed,
                    ex.symmetrised if op == "symmetric quadratic" else None, CANCELLING[dtype],
                    bytes=share * n * n * dtype.itemsize, roof="copy",
                )  # fmt: skip


def batches() -> Iterator[Plan]:
    """A small matrix for each item, and one matrix for all of them."""
    out: tuple[int, ...] | None
    for dtype in (F32, BF16):
        for b, n in ((65536, 16), (16384, 64)):
            for kind, out, share in ((FORWARD, None, 1), (STEP, (b,), 2)):
                yield Plan(
                    f"bilinear {name_of(dtype)}, a matrix per item", f"{b} of {n} x {n}, {kind}",
                    ((b, n), (b, n, n), (b, n)), dtype, PER_ITEM, ex.BILINEAR_PER_ITEM, out,
                    tolerance=CANCELLING[dtype], bytes=share * b * n * n * dtype.itemsize,
                    roof="copy",
                )  # fmt: skip
        op, functions, work, products = SHARED[1]
        b, n = 8192, 1024
        for kind, out, count in ((FORWARD, None, 1), (STEP, (b,), products)):
            yield Plan(
                f"{op} {name_of(dtype)}, one matrix for all", f"{b} with {n} x {n}, {kind}",
                ((b, n), (n, n)), dtype, functions, work, out, tolerance=CANCELLING[dtype],
                flops=2.0 * count * b * n * n, roof=name_of(dtype),
            )  # fmt: skip


def nn_bilinear() -> Iterator[Plan]:
    """The layer: arithmetic, and what the peers keep in memory."""
    for dtype in (F32, BF16):
        for b, i, j, o in ((256, 256, 256, 64), (1024, 128, 128, 128), (4096, 128, 128, 64)):
            for kind, out, count in ((FORWARD, None, 1), (STEP, (b, o), 3)):
                yield Plan(
                    f"nn bilinear {name_of(dtype)}", f"{b} rows, {i} x {j} -> {o}, {kind}",
                    ((b, i), (b, j), (o, i, j), (o,)), dtype, NN_BILINEAR, ex.NN_BILINEAR, out,
                    flops=2.0 * count * b * o * i * j, roof=name_of(dtype),
                )  # fmt: skip


def overhead() -> Iterator[Plan]:
    """n = 16: the arithmetic is nothing, the calls and launches are all."""
    n = 16
    out: tuple[int, ...] | None
    for op, functions, work, shapes, result in (
        ("matmul", MATMUL, ex.MATMUL, ((n, n), (n, n)), (n, n)),
        ("bilinear", FORMS[0][1], ex.BILINEAR, ((n,), (n, n), (n,)), ()),
        ("quadratic", FORMS[1][1], ex.QUADRATIC, ((n,), (n, n)), ()),
    ):
        for kind, out in ((FORWARD, None), (STEP, result)):
            yield Plan(
                f"call, {op}", f"n = {n}, {kind}", shapes, F32, functions, work, out,
                tolerance=1e-3,
            )  # fmt: skip


TABLES: dict[str, Callable[[], Iterator[Plan]]] = {
    "products": products,
    "vectors": vectors,
    "forms": forms,
    "batches": batches,
    "nn_bilinear": nn_bilinear,
    "overhead": overhead,
}


# --------------------------------------------------------------------------------------------
# Measuring


def clock(function: Call, repeats: int) -> float:
    start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(repeats):
        function()
    stop.record()
    stop.synchronize()
    return float(start.elapsed_time(stop)) / 1e3


def peak_of(function: Call) -> int:
    """Bytes that a call has at once, beside its inputs."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    function()
    return torch.cuda.max_memory_allocated() - before


def measure_roofs() -> dict[str, float]:
    """Bytes a second of a large copy, and flops a second of torch's largest products."""

    def best(function: Call) -> float:
        clock(function, 2)
        return min(clock(function, 4) / 4 for _ in range(4))

    def copy_there() -> Tensor:
        return there.copy_(here)

    here = torch.randn(2**28, device="cuda")
    there = torch.empty_like(here)
    roofs = {"copy": 2 * here.numel() * here.element_size() / best(copy_there)}
    n = 8192
    for name, dtype in (("bfloat16", BF16), ("float16", F16), ("tf32", F32), ("float32", F32)):
        a, b = (torch.randn(n, n, device="cuda").to(dtype) for _ in range(2))
        with tf32(name == "tf32"):
            roofs[name] = 2 * n**3 / best(lambda a=a, b=b: a @ b)  # type: ignore[misc]
    a, b = (torch.randn(n // 2, n // 2, dtype=F64, device="cuda") for _ in range(2))
    roofs["float64"] = 2 * (n // 2) ** 3 / best(lambda: a @ b)
    return roofs


def environment(roofs: dict[str, float]) -> dict[str, object]:
    driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    return {
        "device": torch.cuda.get_device_name(),
        "driver": driver.splitlines()[0] if driver else "unknown",
        "CUDA": torch.version.cuda,
        **versions(),
        **show_roofs(roofs),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description="Time matcalc_ext against torch on a CUDA GPU.")
    parser.add_argument("--out", type=Path, help="leave a JSON and a PNG file per table here")
    parser.add_argument("--only", default="", help="only groups whose name contains this text")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--rounds", type=int, default=EFFORT.rounds)
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py: torch sees no CUDA GPU; `python -m matcalc_ext bench` needs none.")
    if not _C.build_info()["cuda"]:
        sys.exit("bench/gpu.py: this build of matcalc_ext has no CUDA kernels; see USE_CUDA=1.")

    torch.manual_seed(0)
    console = Console(width=180)
    maker = CaseMaker("cuda", cache=torch.cuda.get_device_properties(0).L2_cache_size)
    effort = replace(EFFORT, rounds=arguments.rounds)
    roofs = measure_roofs()
    where = environment(roofs)
    console.print(sentence(where), markup=False)
    failed = 0
    for name in arguments.tables:
        rows = []
        for plan in TABLES[name]():
            if arguments.only not in plan.group:
                continue
            try:
                rows.append(measure(maker.make(plan), clock, effort, roofs, peak_of))
            except Exception:
                failed += 1
                console.print(f"[red]FAILED {plan.group}, {plan.name}")
                traceback.print_exc()
        if not rows:
            continue
        try:
            print_rows(rows, console)
            if arguments.out:
                write_json(arguments.out / f"{name}.json", where, rows)
                plot_ratios(arguments.out / f"{name}.png", name, where, rows)
        except Exception:  # the other tables are wanted all the same
            failed += 1
            console.print(f"[red]FAILED table {name}")
            traceback.print_exc()
    if failed:
        console.print(f"[red]{failed} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
