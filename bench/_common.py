"""What the benchmarks share: cases, timing in turn, the table, JSON and plot of the results."""

import json
import math
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

Result = Tensor | tuple[Tensor, ...]
Call = Callable[[], Result]
# Seconds that so many calls take.
Clock = Callable[[Call, int], float]


@dataclass
class Case:
    """One row: the same work done by ours and by each peer."""

    group: str
    name: str
    ours: Call
    peers: dict[str, Call]
    tolerance: float
    reference: Call | None = None  # in higher precision; without it the peers are the reference
    flops: float = 0  # of one call, where arithmetic is the limit
    bytes: float = 0  # that one call must move at the least, where memory is the limit
    roof: str = ""  # the name of the measured roof that flops or bytes are compared with


@dataclass
class Row:
    """What was measured: seconds, the median of the rounds."""

    group: str
    case: str
    ours: float
    peers: dict[str, float]
    ratio: float  # of the best peer's time to ours, round by round; above 1: ours is faster
    spread: tuple[float, float]  # of that ratio
    more: dict[str, object] = field(default_factory=dict)


def forward_backward(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> Call:
    """The training step of one op: its value, and each gradient that an input needs."""
    wanted = [t for t in inputs if t.requires_grad]

    def step() -> Result:
        value = function(*inputs)
        return (value.detach(), *torch.autograd.grad(value, wanted, grad))

    return step


def time_in_turn(
    functions: Sequence[Call], rounds: int, clock: Clock, least: float
) -> list[list[float]]:
    """Seconds per call of each function in each round; the functions take turns.

    A turn is of as many calls as take `least` seconds, and of one at least.
    """
    repeats = []
    for function in functions:
        clock(function, 1)
        repeats.append(max(1, round(least / max(clock(function, 2) / 2, 1e-9))))
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for index, function in enumerate(functions):
            seconds[index].append(clock(function, repeats[index]) / repeats[index])
    return seconds


def measure(case: Case, rounds: int, clock: Clock, least: float) -> Row:
    names = list(case.peers)
    ours, *peers = time_in_turn([case.ours, *case.peers.values()], rounds, clock, least)
    medians = [statistics.median(seconds) for seconds in peers]
    if not peers:
        return Row(case.group, case.name, statistics.median(ours), {}, math.nan, (math.nan,) * 2)
    best = min(range(len(names)), key=medians.__getitem__)
    # Round by round, so that both sides of a ratio saw the same machine.
    ratios = sorted(p / o for p, o in zip(peers[best], ours, strict=True))
    return Row(
        group=case.group,
        case=case.name,
        ours=statistics.median(ours),
        peers=dict(zip(names, medians, strict=True)),
        ratio=statistics.median(ratios),
        spread=(ratios[0], ratios[-1]),
    )


# --------------------------------------------------------------------------------------------
# Where it ran, and what is shown and kept


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def versions() -> dict[str, object]:
    """COMMIT in the environment stands in where there is no git, as in a copy of the sources."""
    commit = output_of("git", "describe", "--always", "--dirty") or os.environ.get("COMMIT")
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or "unknown",
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else "unknown"


def text_of(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def print_rows(rows: Sequence[Row], console: Console) -> None:
    """One line a row; what a row has more comes in columns of its own."""
    more = list(dict.fromkeys(name for row in rows for name in row.more))
    table = Table("case", "", "ours (us)", "peers (us)", "ratio to the best", "spread", *more)
    for row in rows:
        table.add_row(
            row.group,
            row.case,
            f"{row.ours * 1e6:.1f}",
            "\n".join(f"{name} {seconds * 1e6:.1f}" for name, seconds in row.peers.items()),
            f"{row.ratio:.2f}",
            f"{row.spread[0]:.2f} to {row.spread[1]:.2f}",
            *(text_of(row.more.get(name, "")) for name in more),
        )
    console.print(table)


def write_json(path: Path, where: dict[str, object], rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": where, "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1) + "\n")


def plot(path: Path, title: str, where: dict[str, object], rows: Sequence[Row]) -> None:
    """Bars of the ratio: how many times faster than the best peer ours is."""
    import matplotlib  # noqa: PLC0415 -- for this alone: the rest runs without it

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    names = [f"{row.group}, {row.case}".removeprefix(f"{title}, ") for row in rows]
    figure, axes = pyplot.subplots(figsize=(9, 1.5 + 0.32 * len(rows)), layout="constrained")
    ratios = [row.ratio for row in rows]
    low = [row.ratio - row.spread[0] for row in rows]
    high = [row.spread[1] - row.ratio for row in rows]
    colours = ["tab:green" if ratio >= 1 else "tab:orange" for ratio in ratios]
    axes.barh(names, ratios, xerr=[low, high], color=colours, capsize=2)
    axes.axvline(1, color="black", linewidth=1)
    axes.invert_yaxis()
    axes.set_xlabel("time of the best peer / ours (above 1: ours is faster)")
    axes.set_title(f"{title}\n{', '.join(str(value) for value in where.values())}", fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
