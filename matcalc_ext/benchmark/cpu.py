"""The command `python -m matcalc_ext bench`."""

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import _C
from .cases import TABLES, CaseMaker, Plan
from .libraries import available
from .measure import Effort, Row, measure, wall_clock
from .memory import peak_of
from .plots import plot_groups, plot_ratios, plot_shares
from .report import (
    print_comparison,
    print_rows,
    processor,
    read_json,
    sentence,
    show_roofs,
    versions,
    write_json,
    write_markdown,
)

QUICK = Effort(rounds=7, least=0.01, most=2, settle=0.005)
FULL = Effort(rounds=15, least=0.02, most=10, settle=0.005)
TITLE = "matcalc_ext on the CPU"
LEGEND = (
    "A time is the median of the rounds; ours and the peers take turns. ratio: the time of the "
    "fastest way in torch / ours, above 1 where ours is faster, with the least and the greatest of "
    "the rounds. of all: the same with the peers of other libraries, where one of them is faster "
    "than torch; numpy and numba know no derivatives, and their steps are derived by hand. "
    "of roof: speed / the limit measured in the same run. MiB: allocated at once beside the "
    "inputs, with the results, by ours and by the most sparing way in torch. error: of the norm, "
    "against float64, of ours and of the most exact peer."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--full", action="store_true", help="all sizes and dtypes: half an hour")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, help="how often each takes its turn")
    parser.add_argument("--only", default="", help="only groups whose name contains this text")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here")
    parser.add_argument(
        "--out", type=Path, metavar="FOLDER", help="leave rows, tables and plots here (matplotlib)"
    )
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="show what changed since that JSON was written"
    )


def _mistake(arguments: argparse.Namespace) -> str:
    """What is wrong with the arguments, in one sentence; nothing where they are right."""
    for name in ("threads", "rounds"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            return f"--{name} is {value}, expected 1 or more"
    if arguments.out and find_spec("matplotlib") is None:
        return "--out draws with matplotlib, which is not installed: `pip install matplotlib`"
    return ""


def run(arguments: argparse.Namespace) -> int:
    """Measures and shows; 1 where a case was wrong, 2 for arguments that cannot be met."""
    plans = [
        plan
        for table in TABLES.values()
        for plan in table(arguments.full)
        if arguments.only in plan.group
    ]
    mistake, old = _mistake(arguments), None
    if not plans:
        mistake = mistake or f"no group's name contains {arguments.only!r}"
    if arguments.compare and not mistake:
        try:
            old = read_json(arguments.compare)
        except ValueError as error:
            mistake = str(error)
    if mistake:
        print(f"matcalc_ext bench: {mistake}", file=sys.stderr)
        return 2

    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    effort = FULL if arguments.full else QUICK
    if arguments.rounds:
        effort = replace(effort, rounds=arguments.rounds, most=math.inf)
    libraries = available(arguments.threads)
    roofs = _C.cpu_roofs()
    where = {
        "processor": processor(),
        "instruction set": _C.cpu_isa(),
        "threads": arguments.threads,
        "matcalc_ext": _C.build_info()["version"],
        **versions(),
        **{library.name: library.version for library in libraries},
        **show_roofs(roofs),
    }
    console.print(sentence(where), markup=False)
    rows, failed = _measure_all(plans, CaseMaker(libraries=libraries), roofs, effort, console)
    where["working memory kept"] = f"{_C.cpu_scratch_bytes() / 2**20:.1f} MiB"
    print_rows(rows, console)
    console.print(LEGEND)
    console.print(f"Beside that, matcalc_ext's threads keep {where['working memory kept']} in all.")
    if arguments.json and rows:
        write_json(arguments.json, where, rows)
    if arguments.out and rows:
        write_json(arguments.out / "cpu.json", where, rows)
        write_markdown(arguments.out / "cpu.md", where, rows, LEGEND)
        plot_ratios(arguments.out / "speedup.png", TITLE, where, rows)
        plot_groups(arguments.out / "groups.png", TITLE, where, rows)
        plot_shares(arguments.out / "roofs.png", TITLE, where, rows)
        console.print(f"rows, tables and plots are in {arguments.out}", markup=False)
    if old and rows:
        print_comparison(old, (where, rows), console)
    return int(failed > 0)


def _measure_all(
    plans: Sequence[Plan],
    maker: CaseMaker,
    roofs: Mapping[str, float],
    effort: Effort,
    console: Console,
) -> tuple[list[Row], int]:
    """The rows, and how many cases failed. Ctrl-C ends it with the rows so far."""
    rows: list[Row] = []
    failed = 0
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=len(plans))
        try:
            for plan in plans:
                progress.update(task, description=plan.group)
                try:
                    case = maker.make(plan)
                    rows.append(measure(case, wall_clock, effort, roofs, peak_of))
                except AssertionError as wrong:
                    failed += 1
                    console.print(f"WRONG {wrong}", style="red", markup=False)
                progress.advance(task)
        except KeyboardInterrupt:
            console.print("interrupted; what was measured until then:")
    return rows, failed
