"""Checks a case against float64, then times ours and the peers in turn."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

# Tensors, or another library's arrays: one, or a value and its gradients.
Result = Any
Call = Callable[[], Result]
Clock = Callable[[Call, int], float]  # seconds that so many calls take
LONG = 0.2  # seconds that a call takes from which it waits for its turn
# Seconds for which an idle thread of OpenBLAS keeps its processor busy (60 ms and more, measured).
SPINNING = 0.15
# Where the processor has no instruction for a dtype, the limit is that of the dtype it widens to.
FALLBACK_ROOF = {"bfloat16": "float32"}


@dataclass
class Case:
    """One row: the same work done by ours, by each peer, and for the reference in float64."""

    group: str
    name: str
    ours: Call
    peers: dict[str, Call]
    reference: Call
    tolerance: float  # of the norm of the error to the norm of the result
    squares: Call | None = None  # the reference of the squared inputs, for results of one number
    foreign: frozenset[str] = frozenset()  # the peers whose memory torch does not know
    apart: frozenset[str] = frozenset()  # the peers that disturb the others, and are timed last
    flops: float = 0  # of one call at the least, where arithmetic is the limit
    bytes: float = 0  # that one call must move at the least, where memory is the limit
    roof: str = ""  # the name of the measured roof that flops or bytes are compared with
    panel: str = ""  # of the plot against size
    series: str = ""  # the line in there that this is a point of
    size: int = 0


@dataclass
class Row:
    """What was measured: seconds, the median of the rounds; bytes; and errors relative by norms."""

    group: str
    case: str
    ours: float
    peers: dict[str, float]
    best: str  # the fastest way in torch
    ratio: float  # of its time to ours, round by round; above 1: ours is faster
    spread: tuple[float, float]  # of that ratio
    of_all: float  # the ratio to the fastest of all peers
    errors: dict[str, float]
    left_out: dict[str, str] = field(default_factory=dict)  # peer: why it was not timed
    peaks: dict[str, int] = field(default_factory=dict)  # allocated at once, beside the inputs
    results: int = 0  # bytes of the results, which a peak contains
    flops: float = 0
    bytes: float = 0
    roof: str = ""
    share: float = 0  # of that roof
    panel: str = ""
    series: str = ""
    size: int = 0


def forward_backward(
    function: Callable[..., Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> Call:
    """The training step of one op: its value, and each gradient that an input needs."""
    wanted = [t for t in inputs if t.requires_grad]

    def step() -> tuple[Tensor, ...]:
        value = function(*inputs)
        return (value.detach(), *torch.autograd.grad(value, wanted, grad))

    return step


# --------------------------------------------------------------------------------------------
# Checking


def tensors_of(result: Result) -> tuple[Tensor, ...]:
    results = result if isinstance(result, (tuple, list)) else (result,)
    return tuple(r if isinstance(r, Tensor) else torch_from(r) for r in results)


def torch_from(result: Any) -> Tensor:
    """Another library's array or number, by way of numpy, which such a library brings along."""
    numpy: Any = import_module("numpy")
    array = numpy.asarray(result)
    if array.dtype.kind not in "fc":  # what numpy itself has no name for, as bfloat16
        array = array.astype(numpy.float32)
    return torch.tensor(array)


def error_of(got: Result, expected: Result, squares: Result | None = None) -> float:
    """The largest error of the results, each by norms; infinite for what is not a number.

    A single number may be a sum that happens to cancel, beside which any rounding is large. Given
    the sum of the `squares` of its terms, it is compared with their root, the size of such sums.
    """
    worst = 0.0
    sums = expected if squares is None else squares
    for one, two, square in zip(*map(tensors_of, (got, expected, sums)), strict=True):
        if one.shape != two.shape:
            return math.inf
        single = squares is not None and two.numel() == 1
        size = square.norm().sqrt() if single else two.norm()
        error = ((one.to(two.dtype) - two).norm() / size).item()
        worst = max(worst, error if math.isfinite(error) else math.inf)
    return worst


def check(case: Case) -> tuple[dict[str, float], dict[str, str]]:
    """The errors of ours and the peers; drops, and says why, the peers that fail or are wrong."""
    expected = case.reference()
    single = any(t.numel() == 1 for t in tensors_of(expected))
    squares = case.squares() if single and case.squares is not None else None
    errors = {"ours": error_of(case.ours(), expected, squares)}
    if errors["ours"] > case.tolerance:
        raise AssertionError(
            f"{case.group}, {case.name}: off by {errors['ours']:.2g}, allowed {case.tolerance:.2g}"
        )
    left_out = {}
    for name, peer in list(case.peers.items()):
        try:
            errors[name] = error_of(peer(), expected, squares)
        except (RuntimeError, NotImplementedError) as error:  # out of memory, a dtype it lacks
            left_out[name] = str(error).splitlines()[0] if str(error) else type(error).__name__
        else:
            if errors[name] > case.tolerance:
                left_out[name] = f"off by {errors[name]:.2g}"
        if name in left_out:
            del case.peers[name]
    return errors, left_out


# --------------------------------------------------------------------------------------------
# Timing


def wall_clock(function: Call, repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        function()
    return time.perf_counter() - start


@dataclass(frozen=True)
class Effort:
    """How long is measured, in seconds."""

    rounds: int
    least: float  # one turn, which is of as many calls as that takes, and one at least
    most: float = math.inf  # one case, at which the rounds are cut, to three at least
    # Before each turn, untimed: a library's threads go on spinning for milliseconds after its last
    # call, and meanwhile the threads of another have one processor less; and a virtual machine may
    # have given back the memory that a function used in its last turn. What takes longer than
    # LONG does not notice, and waits instead of being called.
    settle: float = 0


def time_in_turn(functions: Sequence[Call], clock: Clock, effort: Effort) -> list[list[float]]:
    """Seconds per call of each function in each round; the functions take turns."""
    times = []
    for function in functions:
        took = clock(function, 1)
        if took < effort.least:  # the first call may be slower than those that follow
            took = clock(function, 2) / 2
        times.append(max(took, 1e-9))
    turns = [max(effort.least, took) + effort.settle for took in times]
    rounds = max(min(3, effort.rounds), int(min(effort.rounds, effort.most / sum(turns))))
    seconds: list[list[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for function, took, kept in zip(functions, times, seconds, strict=True):
            if took < LONG:
                clock(function, math.ceil(effort.settle / took))
            else:
                time.sleep(effort.settle)
            repeats = max(1, round(effort.least / took))
            kept.append(clock(function, repeats) / repeats)
    return seconds


def measure(
    case: Case,
    clock: Clock,
    effort: Effort,
    roofs: Mapping[str, float],
    peak_of: Callable[[Call], int],
) -> Row:
    """All of one row; AssertionError where ours is wrong."""
    errors, left_out = check(case)
    torch_peers = {name: peer for name, peer in case.peers.items() if name not in case.foreign}
    peaks = {name: peak_of(call) for name, call in {"ours": case.ours, **torch_peers}.items()}
    apart = [name for name in case.peers if name in case.apart]
    if apart:
        time.sleep(SPINNING)
    names = [name for name in case.peers if name not in apart]
    calls = [case.ours, *(case.peers[name] for name in names)]
    ours, *peers = time_in_turn(calls, clock, effort)
    for name in apart:
        peers += time_in_turn([case.peers[name]], clock, replace(effort, rounds=len(ours)))
    names += apart
    # Round by round, so that both sides of a ratio saw the same machine.
    ratios = {
        name: sorted(p / o for p, o in zip(peer, ours, strict=False))
        for name, peer in zip(names, peers, strict=True)
    }
    medians = {name: statistics.median(ratio) for name, ratio in ratios.items()}
    best = min(torch_peers, key=medians.__getitem__, default="")
    row = Row(
        group=case.group,
        case=case.name,
        ours=statistics.median(ours),
        peers=dict(zip(names, map(statistics.median, peers), strict=True)),
        best=best,
        ratio=medians.get(best, math.nan),
        spread=(ratios[best][0], ratios[best][-1]) if best else (math.nan, math.nan),
        of_all=min(medians.values(), default=math.nan),
        errors=errors,
        left_out=left_out,
        peaks=peaks,
        results=sum(t.numel() * t.element_size() for t in tensors_of(case.ours())),
        flops=case.flops,
        bytes=case.bytes,
        roof=case.roof if case.roof in roofs else FALLBACK_ROOF.get(case.roof, ""),
        panel=case.panel,
        series=case.series,
        size=case.size,
    )
    if row.roof:
        row.share = (row.flops or row.bytes) / row.ours / roofs[row.roof]
    return row
