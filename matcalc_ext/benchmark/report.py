"""Where it ran, and what is shown and kept: tables, JSON, and the comparison of two runs."""

import json
import os
import platform
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from .measure import Row

Environment = Mapping[str, object]


def output_of(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""


def versions() -> dict[str, object]:
    """The commit is that of the sources, where they are a git repository; else COMMIT's."""
    sources = Path(__file__).parents[2]
    commit = output_of("git", "-C", str(sources), "describe", "--always", "--dirty")
    return {
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit or os.environ.get("COMMIT", "unknown"),
    }


def processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (s.partition(":") for s in lines)}
    model = [facts[name] for name in ("cpu family", "model") if name in facts]
    numbers = f" (family {model[0]}, model {model[1]})" if len(model) == 2 else ""
    return facts.get("model name", platform.processor() or "unknown") + numbers


def show_roofs(roofs: Mapping[str, float]) -> dict[str, str]:
    return {
        f"{name} roof": f"{roof / 1e9:.4g} {'GB/s' if name in ('read', 'copy') else 'Gflop/s'}"
        for name, roof in roofs.items()
    }


def sentence(where: Environment) -> str:
    return ", ".join(f"{name}: {value}" for name, value in where.items())


# --------------------------------------------------------------------------------------------
# Tables


def _duration(seconds: float) -> str:
    microseconds = seconds * 1e6
    if microseconds < 999.5:
        return f"{microseconds:.3g} µs"
    return f"{microseconds / 1e3:.3g} ms" if microseconds < 999.5e3 else f"{seconds:.3g} s"


def _mebibytes(size: float) -> str:
    return f"{size / 2**20:.3g}" if size >= 2**13 else "0"


def _speed(row: Row) -> str:
    if row.flops:
        return f"{row.flops / row.ours / 1e9:.3g} Gflop/s"
    return f"{row.bytes / row.ours / 1e9:.3g} GB/s" if row.bytes else ""


def _cells(row: Row, peers: Sequence[str]) -> dict[str, str]:
    errors = [error for name, error in row.errors.items() if name in row.peers]
    others = [peak for name, peak in row.peaks.items() if name != "ours"]
    return {
        "": row.case,
        "ours": _duration(row.ours),
        **{name: _duration(row.peers[name]) if name in row.peers else "" for name in peers},
        "ratio": f"{row.ratio:.2f}" if row.best else "",
        "spread": f"{row.spread[0]:.2f}–{row.spread[1]:.2f}" if row.best else "",
        "of all": f"{row.of_all:.2f}" if row.best and row.of_all < row.ratio else "",
        "speed": _speed(row),
        "of roof": f"{row.share:.0%} of {row.roof}" if row.roof else "",
        "MiB": _mebibytes(row.peaks["ours"]) if row.peaks else "",
        "least MiB": _mebibytes(min(others)) if others else "",
        "error": f"{row.errors['ours']:.1e}",
        "best error": f"{min(errors):.1e}" if errors else "",
        "left out": "; ".join(f"{name}: {why}" for name, why in row.left_out.items()),
    }


def tables_of(rows: Sequence[Row], style: box.Box) -> dict[str, Table]:
    """One table a group, with a column for each peer; columns that hold nothing are left out."""
    tables = {}
    for group in dict.fromkeys(row.group for row in rows):
        members = [row for row in rows if row.group == group]
        peers = list(dict.fromkeys(name for row in members for name in row.peers))
        lines = [_cells(row, peers) for row in members]
        names = [name for name in lines[0] if any(line[name] for line in lines)]
        tables[group] = Table(*names, box=style)
        for row, line in zip(members, lines, strict=True):
            slower = row.best and row.ratio < 1
            tables[group].add_row(*(line[name] for name in names), style="yellow" if slower else "")
    return tables


def print_rows(rows: Sequence[Row], console: Console) -> None:
    for group, table in tables_of(rows, box.SIMPLE).items():
        table.title = group
        console.print(table)


def write_markdown(path: Path, where: Environment, rows: Sequence[Row], legend: str) -> None:
    text = StringIO()
    console = Console(file=text, width=1000, color_system=None)
    console.print(f"# {path.stem}\n\n{legend}\n\n{sentence(where)}", markup=False)
    for group, table in tables_of(rows, box.MARKDOWN).items():
        console.print(f"\n## {group}\n", markup=False)
        console.print(table)
    lines = (line.rstrip() for line in text.getvalue().splitlines())
    path.write_text(re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n")


# --------------------------------------------------------------------------------------------
# JSON, and two runs side by side


def write_json(path: Path, where: Environment, rows: Sequence[Row]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"environment": dict(where), "rows": [asdict(row) for row in rows]}
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_json(path: Path) -> tuple[dict[str, Any], list[Row]]:
    """What write_json wrote; ValueError with a sentence for anything else."""
    try:
        content = json.loads(path.read_text())
        names = {field.name for field in fields(Row)}
        rows = [Row(**{k: v for k, v in row.items() if k in names}) for row in content["rows"]]
        for row in rows:
            low, high = row.spread  # which JSON knows as a list
            row.spread = (low, high)
        return dict(content["environment"]), rows
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} does not hold the rows of a benchmark: {error!r}") from error


def print_comparison(
    old: tuple[Environment, Sequence[Row]], new: tuple[Environment, Sequence[Row]], console: Console
) -> None:
    """Each row of both runs: ours then and now, and the ratio to the best peer then and now.

    Where the machine is as fast as it was, both tell the same; the ratio holds even where not.
    """
    before = {(row.group, row.case): row for row in old[1]}
    table = Table("", "", "then", "now", "then / now", "ratio then", "ratio now", box=box.SIMPLE)
    changes = 0
    for row in new[1]:
        was = before.get((row.group, row.case))
        if was is None:
            continue
        changes += 1
        apart = row.spread[0] > was.spread[1] or row.spread[1] < was.spread[0]
        style = ("green" if row.ratio > was.ratio else "red") if apart else ""
        table.add_row(
            row.group,
            row.case,
            _duration(was.ours),
            _duration(row.ours),
            f"{was.ours / row.ours:.2f}",
            f"{was.ratio:.2f}",
            f"{row.ratio:.2f}",
            style=style,
        )
    differ = [
        f"{name} was {old[0].get(name)} and is {value}"
        for name, value in new[0].items()
        if name in old[0] and old[0][name] != value and "roof" not in name
    ]
    console.print(f"compared with an earlier run{': ' if differ else ''}{'; '.join(differ)}")
    if changes:
        console.print(table)
        console.print("green and red: the spreads of the ratios do not overlap")
    else:
        console.print("no row is in both runs")
