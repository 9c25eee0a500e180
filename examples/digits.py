"""Train three models on handwritten digits, each in plain torch and in matcalc_ext, and compare.

    python examples/digits.py            # `make demo`; half a minute on two idle cores
    python examples/digits.py --quick    # a few steps of each, to see that everything runs

The data are the 1797 images of 8 x 8 pixels that come with scikit-learn; nothing is downloaded.
Each model exists twice, made from one seed and shown the same batches. The two take their training
steps in turn, so that whatever else the machine does falls on both alike.

  classifier     h -> 4h -> h feed-forward block with a residual     nn.Linear, by nn.swap
  verification   do two images show the same digit? y^T A x          nn.Bilinear, by nn.swap
  discriminant   one quadratic form per digit, x^T W x               einsum against nn.Quadratic

Ends with status 1 and says why if the two versions did not learn the same.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

import matcalc_ext
from matcalc_ext.benchmark.memory import peak_of

matplotlib.use("Agg")
import matplotlib.pyplot as plt

ACCURACY_TOLERANCE = 0.01  # a few of the test items, far less than one model differs from the next
LOSS_TOLERANCE = 1e-3  # rounding grows from step to step; a wrong gradient shows at once
WARM_UP = 5  # first steps of each, whose time is not counted
TITLES = ("plain torch", "matcalc_ext")


class Classifier(nn.Module):
    """Logits of ten digits from one h -> 4h -> h block, as in a transformer."""

    def __init__(self, hidden: int = 256):
        super().__init__()
        self.embed = nn.Linear(64, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.up = nn.Linear(hidden, 4 * hidden)
        self.down = nn.Linear(4 * hidden, hidden)
        self.head = nn.Linear(hidden, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.embed(image)
        x = x + self.down(F.gelu(self.up(self.norm(x))))
        return self.head(x)


class Verification(nn.Module):
    """Logit of "the same digit": a learned similarity y^T A x + b of two embedded images."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(64, 2 * width), nn.GELU(), nn.Linear(2 * width, width), nn.Tanh()
        )
        self.similarity = nn.Bilinear(width, width, 1)

    def forward(self, pairs: Tensor) -> Tensor:
        y, x = self.embed(pairs).unbind(1)
        return self.similarity(y, x).squeeze(-1)


class EinsumForms(nn.Module):
    """What stands for nn.Quadratic in plain torch."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(out_features, in_features, in_features))
        nn.init.uniform_(self.weight, -1 / in_features, 1 / in_features)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bi,oij,bj->bo", x, self.weight, x)


class Discriminant(nn.Module):
    """Logits of ten digits, one quadratic form each.

    A constant pixel beside the 64 of the image holds the linear terms and the bias.
    """

    def __init__(self, forms: nn.Module):
        super().__init__()
        self.forms = forms

    def forward(self, image: Tensor) -> Tensor:
        return self.forms(F.pad(image, (0, 1), value=1.0))


@dataclass
class Split:
    """Inputs and targets of one task; a batch is a row of indices into them."""

    inputs: Tensor
    targets: Tensor


@dataclass
class Task:
    name: str
    make: tuple[Callable[[], nn.Module], Callable[[], nn.Module]]
    loss: Callable[[Tensor, Tensor], Tensor]
    correct: Callable[[Tensor, Tensor], Tensor]
    train: Split
    test: Split
    batch: int
    epoch: int  # items of the training data that one epoch shows


@dataclass
class Result:
    """Of one task; every pair is (plain torch, matcalc_ext)."""

    name: str
    losses: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))
    peaks: tuple[int, int] = (0, 0)
    accuracies: tuple[float, float] = (0.0, 0.0)

    @property
    def step_seconds(self) -> tuple[float, float]:
        first, second = (statistics.median(s[WARM_UP:] or s) for s in self.seconds)
        return first, second

    @property
    def loss_difference(self) -> float:
        first, second = torch.tensor(self.losses, dtype=torch.float64)
        return (first - second).abs().max().item()  # NaN where either is, which max() would lose


def load(seed: int) -> tuple[Split, Split]:
    """A quarter of the images is for the test."""
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32) / 16  # pixels are 0 to 16
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    test, train = order[: len(order) // 4], order[len(order) // 4 :]
    return Split(images[train], labels[train]), Split(images[test], labels[test])


def pairs(split: Split, count: int, seed: int) -> Split:
    """Pairs of images, half of them of one digit, which is not left to chance."""
    generator = torch.Generator().manual_seed(seed)
    first = torch.randint(len(split.targets), (count,), generator=generator)
    same = torch.arange(count) % 2 == 0
    # In the order of the digits, those of one digit are a run, and all others the rest of a circle.
    order = split.targets.argsort(stable=True)
    sizes = split.targets.bincount()
    size = sizes[split.targets[first]]
    start = (sizes.cumsum(0) - sizes)[split.targets[first]]
    u = torch.rand(count, generator=generator, dtype=torch.float64)
    within = start + (u * size).long()
    without = start + size + (u * (len(order) - size)).long()
    second = order[torch.where(same, within, without % len(order))]
    return Split(torch.stack([split.inputs[first], split.inputs[second]], 1), same.float())


def tasks(seed: int) -> Iterator[Task]:
    train, test = load(seed)

    def right_digit(logits: Tensor, labels: Tensor) -> Tensor:
        return logits.argmax(-1) == labels

    def right_side(logits: Tensor, same: Tensor) -> Tensor:
        return (logits > 0) == (same > 0)

    yield Task(
        "classifier",
        (Classifier, lambda: matcalc_ext.nn.swap(Classifier())),
        F.cross_entropy,
        right_digit,
        train,
        test,
        batch=128,
        epoch=len(train.targets),
    )
    yield Task(
        "verification",
        (Verification, lambda: matcalc_ext.nn.swap(Verification())),
        F.binary_cross_entropy_with_logits,
        right_side,
        pairs(train, 32768, seed + 1),
        pairs(test, 4096, seed + 2),
        batch=256,
        epoch=8192,
    )
    yield Task(
        "discriminant",
        (
            lambda: Discriminant(EinsumForms(65, 10)),
            lambda: Discriminant(matcalc_ext.nn.Quadratic(65, 10, bias=False)),
        ),
        F.cross_entropy,
        right_digit,
        train,
        test,
        batch=128,
        epoch=len(train.targets),
    )


class Trainer:
    """One version of one task."""

    def __init__(self, task: Task, version: int, seed: int):
        torch.manual_seed(seed)
        self.task = task
        self.model = task.make[version]()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3)

    def step(self, rows: Tensor) -> float:
        inputs, targets = self.task.train.inputs[rows], self.task.train.targets[rows]
        self.optimizer.zero_grad()
        loss = self.task.loss(self.model(inputs), targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def accuracy(self) -> float:
        test = self.task.test
        return self.task.correct(self.model(test.inputs), test.targets).float().mean().item()

    def peak(self, rows: Tensor) -> int:
        """Most bytes of tensors that a step holds beyond what is held between steps."""
        self.optimizer.zero_grad()
        return peak_of(lambda: self.step(rows))


def compare(task: Task, epochs: int, seed: int, progress: Progress) -> Result:
    """Train both versions of a task, step by step in turn."""
    trainers = [Trainer(task, version, seed) for version in range(2)]
    for plain, ours in zip(*(t.model.parameters() for t in trainers), strict=True):
        if not torch.equal(plain, ours):
            raise SystemExit(f"{task.name}: the two versions start from different parameters")
    result = Result(task.name)
    shuffle = torch.Generator().manual_seed(seed)
    steps = task.epoch // task.batch
    bar = progress.add_task(task.name, total=epochs * steps)
    for _ in range(epochs):
        order = torch.randperm(len(task.train.targets), generator=shuffle)
        for step, rows in enumerate(order[: steps * task.batch].split(task.batch)):
            for version in (0, 1) if step % 2 else (1, 0):  # neither always finds the data cached
                start = time.perf_counter()
                loss = trainers[version].step(rows)
                result.seconds[version].append(time.perf_counter() - start)
                result.losses[version].append(loss)
            progress.advance(bar)
    first, second = (trainer.accuracy() for trainer in trainers)
    result.accuracies = (first, second)
    # After the training, for it takes one more step.
    first, second = (trainer.peak(torch.arange(task.batch)) for trainer in trainers)
    result.peaks = (first, second)
    return result


def table(results: list[Result]) -> Table:
    rows = Table(
        title="Handwritten digits: plain torch | matcalc_ext",
        caption="time per step: forward, backward and Adam, the median over the training, the two "
        "versions taking steps in turn. peak memory: the most bytes of tensors a step holds beyond "
        "those held between steps, from the profiler's record of torch's allocator (what a kernel, "
        "torch's or ours, keeps for itself is not in it). ratio: plain torch / matcalc_ext, so "
        "more than 1 means that matcalc_ext needs less.",
        caption_justify="left",
    )
    rows.add_column("model")
    for column in ("test accuracy", "largest loss difference", "time per step (ms)", "ratio"):
        rows.add_column(column, justify="right")
    for column in ("peak memory (MB)", "ratio"):
        rows.add_column(column, justify="right")
    for result in results:
        (a, b), (s, t), (p, q) = result.accuracies, result.step_seconds, result.peaks
        rows.add_row(
            result.name,
            f"{a:.2%} | {b:.2%}",
            f"{result.loss_difference:.1e}",
            f"{s * 1e3:.2f} | {t * 1e3:.2f}",
            f"{s / t:.2f}",
            f"{p / 1e6:.2f} | {q / 1e6:.2f}",
            f"{p / q:.2f}",
        )
    return rows


def plot(results: list[Result], path: Path) -> None:
    figure, axes = plt.subplots(1, 4, figsize=(18, 4.2), layout="constrained")
    for axis, result in zip(axes, results, strict=False):
        axis.plot(result.losses[0], color="tab:orange", linewidth=3, alpha=0.6, label=TITLES[0])
        axis.plot(result.losses[1], color="tab:blue", linewidth=1, label=TITLES[1])
        axis.set(title=result.name, xlabel="step", ylabel="training loss", yscale="log")
        axis.legend()
    speed = axes[-1]
    for version, colour in enumerate(("tab:orange", "tab:blue")):
        places = [place + 0.4 * version - 0.2 for place in range(len(results))]
        times = [result.step_seconds[version] * 1e3 for result in results]
        bars = speed.bar(places, times, width=0.4, color=colour, label=TITLES[version])
        speed.bar_label(bars, fmt="%.2f")
    speed.set(title="time per training step", ylabel="ms")
    speed.set_xticks(range(len(results)), [result.name for result in results])
    speed.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def disagreements(results: list[Result], loss_tolerance: float) -> list[str]:
    found = []
    for result in results:
        a, b = result.accuracies
        if not abs(a - b) <= ACCURACY_TOLERANCE:
            found.append(
                f"{result.name}: test accuracy {a:.2%} and {b:.2%} differ by more than "
                f"{ACCURACY_TOLERANCE:.2%}"
            )
        if not result.loss_difference <= loss_tolerance:  # also where it is NaN
            found.append(
                f"{result.name}: the loss curves differ by {result.loss_difference:.1e}, more than "
                f"{loss_tolerance:.1e}"
            )
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, help="passes over the training data (default: 20)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="for both versions (default: torch's choice)")
    parser.add_argument("--output", type=Path, default=Path("build/demo/digits.png"))
    parser.add_argument("--loss-tolerance", type=float, default=LOSS_TOLERANCE)
    parser.add_argument("--quick", action="store_true", help="one epoch, to see that all runs")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    epochs = options.epochs or (1 if options.quick else 20)

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, seed {options.seed}, "
        f"{epochs} epochs"
    )
    columns = [TextColumn("{task.description:14}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TextColumn("steps"), TimeElapsedColumn(), console=console) as progress:
        results = [compare(task, epochs, options.seed, progress) for task in tasks(options.seed)]
    console.print(table(results))
    plot(results, options.output)
    console.print(f"plot: {options.output.resolve()}", soft_wrap=True)
    found = disagreements(results, options.loss_tolerance)
    for line in found:
        console.print(f"[red]FAILED[/red] {line}", soft_wrap=True)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
