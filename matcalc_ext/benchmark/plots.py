"""Plots of the rows, as PNG."""

from collections.abc import Sequence
from pathlib import Path
from statistics import geometric_mean
from textwrap import wrap
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
    figure.suptitle("\n".join([title, *wrap(words, 110)]), fontsize=9)


def _bars(
    path: Path,
    title: str,
    where: Environment,
    names: Sequence[str],
    ratios: Sequence[float],
    ranges: Sequence[tuple[float, float]],
) -> None:
    figure, axes = pyplot().subplots(figsize=(10, 1.5 + 0.2 * len(names)), layout="constrained")
    places = range(len(names))
    low = [ratio - least for ratio, (least, _) in zip(ratios, ranges, strict=True)]
    high = [most - ratio for ratio, (_, most) in zip(ratios, ranges, strict=True)]
    colours = ["tab:green" if ratio >= 1 else "tab:orange" for ratio in ratios]
    axes.barh(places, ratios, xerr=[low, high], color=colours, capsize=2)
    axes.set_yticks(places, names, fontsize=7)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_xscale("log", base=2)
    ticks = [2.0**i for i in range(-2, 10) if min(ratios) / 2 < 2.0**i < max(ratios) * 2]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlabel("time of the fastest way in torch / ours (above 1: ours is faster)")
    _title(figure, title, where)
    _save(figure, path)


def plot_ratios(path: Path, title: str, where: Environment, rows: Sequence[Row]) -> None:
    """How many times faster than the fastest way in torch ours is in each case, with the spread."""
    rows = [row for row in rows if row.best]
    _bars(
        path,
        title,
        where,
        [f"{row.group}: {row.case}" for row in rows],
        [row.ratio for row in rows],
        [row.spread for row in rows],
    )


def plot_groups(path: Path, title: str, where: Environment, rows: Sequence[Row]) -> None:
    """The same for each group: the geometric mean of its cases, with the least and the greatest."""
    groups: dict[str, list[float]] = {}
    for row in rows:
        if row.best:
            groups.setdefault(row.group, []).append(row.ratio)
    _bars(
        path,
        f"{title}: mean of each group's cases, with the least and the greatest",
        where,
        list(groups),
        list(map(geometric_mean, groups.values())),
        [(min(ratios), max(ratios)) for ratios in groups.values()],
    )


def plot_shares(path: Path, title: str, where: Environment, rows: Sequence[Row]) -> bool:
    """Lines: the share of the machine's limit against size. False, and no file, without rows."""
    rows = [row for row in rows if row.panel and row.roof]
    panels = list(dict.fromkeys(row.panel for row in rows))
    if not panels:
        return False
    across = min(3, len(panels))
    down = -(-len(panels) // across)
    figure, grid = pyplot().subplots(
        down, across, figsize=(6 * across, 6 * down), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.remove()
    for axes, panel in zip(grid.flat, panels, strict=False):
        members = [row for row in rows if row.panel == panel]
        names = list(dict.fromkeys(row.series for row in members))
        dtypes = list(dict.fromkeys(name.partition(",")[0] for name in names))
        kinds = list(dict.fromkeys(name.partition(",")[2] for name in names))
        for name in names:
            dtype, _, kind = name.partition(",")
            points = sorted((row.size, row.share) for row in members if row.series == name)
            axes.plot(
                *zip(*points, strict=True),
                label=name,
                marker="o",
                markersize=3,
                color=f"C{dtypes.index(dtype)}",
                linestyle=("-", "--", ":")[kinds.index(kind) % 3],
            )
        axes.axhline(1, color="black", linewidth=1)
        axes.set_title(panel)
        axes.set_xscale("log", base=2)
        ticks = sorted({row.size for row in members})
        axes.set_xticks(ticks, list(map(str, ticks)))
        memory = members[0].bytes > 0
        axes.set_ylim(0, 2 if memory else 1.05)
        axes.set_xlabel("n")
        axes.set_ylabel(
            "share of the bandwidth of memory (above 1: out of a cache)"
            if memory
            else "share of the speed of arithmetic"
        )
        axes.legend(fontsize=6, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=2)
    _title(figure, title, where)
    _save(figure, path)
    return True
