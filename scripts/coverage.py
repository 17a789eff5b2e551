"""Count how often an interval around a test result holds the accuracy over all classes, of which the test has a few.

The 1100 training characters of Omniglot are the population. Again and again some of them are a test split, whose tasks
are scored by the nearest picture, in cosines of pixels. Both intervals of `metarun.core.statistics` are counted. Prints
a table and writes the plot as coverage.png into the given folder. Needs the data of dataset=omniglot.

    python scripts/coverage.py docs
"""

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.core.seeding import generator_for
from metarun.core.statistics import over_classes, over_tasks
from metarun.core.types import TaskShape
from metarun.datasets.sampling.episodes import EpisodeSampler, draw_distinct
from metarun.engine.build import build_dataset

DATA = ("dataset=omniglot", "dataset.image_size=14", "dataset.rotations_train=none", "device=cpu")
WAYS, QUERIES = 5, 5
SIZES = (10, 20, 50, 100, 200)  # classes of a test split
POPULATION = 20_000  # tasks of all classes


class Coverage(NamedTuple):
    """The share of test splits whose interval holds the population's accuracy, and the mean half-width of all."""

    held: float
    half: float


def read_features() -> Tensor:
    """The pictures of every class, each scaled to length 1: [classes, per_class, D]."""
    source = build_dataset(load_settings(resolve(compose(DATA)))).tasks("train", TaskShape(WAYS, 1, QUERIES))
    assert isinstance(source, EpisodeSampler)
    classes, members = torch.arange(len(source.table)), torch.arange(source.table.least)
    pictures = source.table.take(classes[None], members.expand(1, len(classes), -1))[0]
    return F.normalize(source.transform(pictures, generator_for("coverage")).flatten(2).float(), dim=-1)


def score(features: Tensor, pool: Tensor, tasks: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw 1-shot tasks of the classes in `pool`. Returns their accuracies [tasks], and their classes [tasks, N]."""
    classes = pool[draw_distinct(len(pool), WAYS, (tasks,), generator)]
    members = draw_distinct(features.shape[1], 1 + QUERIES, (tasks, WAYS), generator)
    z = features[classes[..., None], members]  # [tasks, N, 1 + Q, D]
    nearest = torch.einsum("tnqd,tmd->tnqm", z[:, :, 1:], z[:, :, 0]).argmax(-1)  # [tasks, N, Q]
    return (nearest == torch.arange(WAYS)[:, None]).double().mean((1, 2)), classes


def measure(features: Tensor, truth: float, size: int, splits: int, tasks: int) -> tuple[Coverage, Coverage]:
    """Return the coverage of the interval over tasks, and of the one over classes, at so many classes of a split."""
    halves, errors = [], []
    for split in range(splits):
        generator = generator_for("coverage", size, split)
        pool = torch.randperm(len(features), generator=generator)[:size]
        scores, classes = (found.numpy() for found in score(features, pool, tasks, generator))
        whole, few = over_tasks(scores), over_classes(scores, classes)
        assert whole is not None
        assert few is not None
        halves.append([float(whole), few])
        errors.append(abs(float(scores.mean()) - truth))
    half, error = torch.tensor(halves), torch.tensor(errors)
    held = (error[:, None] <= half).double().mean(0)
    over_all, over_few = (Coverage(*both) for both in zip(held.tolist(), half.mean(0).tolist()))
    return over_all, over_few


def main(args: argparse.Namespace) -> int:
    features = read_features()
    scores, _ = score(features, torch.arange(len(features)), POPULATION, generator_for("coverage"))
    truth = float(scores.mean())
    print(f"all {len(features)} classes: {100 * truth:.2f} ± {100 * float(over_tasks(scores.numpy()) or 0):.2f} %")
    print(f"{args.splits} splits of each size, {args.tasks} tasks each\n")
    print("| test classes | ± over tasks, points | holds | ± over classes, points | holds |\n|--:|--:|--:|--:|--:|")
    rows = []
    for size in SIZES:
        rows.append(measure(features, truth, size, args.splits, args.tasks))
        cells = (f"{100 * each.half:.2f} | {100 * each.held:.1f} %" for each in rows[-1])
        print(f"| {size} | {' | '.join(cells)} |", flush=True)
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axis = figure.subplots()
    axis.axhspan(93, 97, alpha=0.2, label="93 to 97 %")
    for name, found in zip(("1.96 s / sqrt(tasks)", "over classes"), zip(*rows)):
        axis.plot(SIZES, [100 * each.held for each in found], marker="o", label=name)
    axis.set(xscale="log", xlabel="test classes", ylabel="holds the accuracy\nover all classes, %", ylim=(0, 102))
    axis.set_xticks(SIZES, labels=[str(size) for size in SIZES])
    axis.set_xticks([], minor=True)
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(args.folder / "coverage.png", dpi=120)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where coverage.png is written")
    parser.add_argument("--splits", type=int, default=200, help="test splits of each size")
    parser.add_argument("--tasks", type=int, default=600, help="tasks of a test")
    sys.exit(main(parser.parse_args()))
