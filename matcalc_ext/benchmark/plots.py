"""Plots of the rows, as PNG."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from .measure import Row
from .report import Environment, sentence


def pyplot() -> Any:
    """matplotlib is imported here: nothing else needs it."""
    import matplotlib  # noqa: PLC0415

    matplotlib.use("Agg")
    from matplotlib import pyplot  # noqa: PLC0415

    return pyplot


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot().close(figure)


def _title(figure: Any, title: str, where: Environment) -> None:
    words = sentence({name: value for name, value in where.items() if "roof" not in name})
    figure.suptitle(f"{title}\n{words}", fontsize=9, wrap=True)


def plot_ratios(path: Path, title: str, where: Environment, rows: Sequence[Row]) -> None:
    """Bars: how many times faster than the best peer ours is in each case."""
    rows = [row for row in rows if row.best]
    figure, axes = pyplot().subplots(figsize=(10, 1.5 + 0.2 * len(rows)), layout="constrained")
    places = range(len(rows))
    ratios = [row.ratio for row in rows]
    low = [row.ratio - row.spread[0] for row in rows]
    high = [row.spread[1] - row.ratio for row in rows]
    colours = ["tab:green" if ratio >= 1 else "tab:orange" for ratio in ratios]
    axes.barh(places, ratios, xerr=[low, high], color=colours, capsize=2)
    axes.set_yticks(places, [f"{row.group}: {row.case}" for row in rows], fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    ticks = [2.0**i for i in range(-2, 10) if min(ratios) / 2 < 2.0**i < max(ratios) * 2]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("time of the best peer / ours (above 1: ours is faster)")
    _title(figure, title, where)
    _save(figure, path)


def plot_shares(path: Path, title: str, where: Environment, rows: Sequence[Row]) -> bool:
    """Lines: the share of the machine's limit against size. False, and no file, without rows."""
    rows = [row for row in rows if row.series and row.roof]
    kinds = [
        ("of the arithmetic", [row for row in rows if row.flops]),
        ("of the memory bandwidth (above 1: out of a cache)", [row for row in rows if row.bytes]),
    ]
    kinds = [(name, members) for name, members in kinds if members]
    if not kinds:
        return False
    figure, all_axes = pyplot().subplots(
        1, len(kinds), figsize=(7 * len(kinds), 6), layout="constrained", squeeze=False
    )
    for axes, (name, members) in zip(all_axes[0], kinds, strict=True):
        for series, points in groupby(members, key=lambda row: row.series):
            sizes, shares = zip(*((row.size, row.share) for row in points), strict=True)
            axes.plot(sizes, shares, marker="o", markersize=3, linewidth=1, label=series)
        axes.axhline(1, color="black", linewidth=1)
        axes.set_xscale("log", base=2)
        ticks = sorted({row.size for row in members})
        axes.set_xticks(ticks, list(map(str, ticks)))
        axes.set_ylim(0, min(2.0, 1.05 * max(1, *(row.share for row in members))))
        axes.set_xlabel("n")
        axes.set_ylabel(f"share {name}")
        axes.legend(fontsize=6)
    _title(figure, title, where)
    _save(figure, path)
    return True
