"""Time the drawing of tasks (W5): episodes per second, and its share of a training step of W1q1 and W2so.

One process, one thread, metarun's allocator settings for all, images in memory; the samplers take turns.

    python scripts/sampling.py --rounds 10
"""

import argparse
import importlib.util
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from benchmark import provenance
from contenders import Metarun
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset
from workload import WORK, Work

from metarun.core.types import TaskShape
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.table import Table
from metarun.engine.process import prepare_cpu

TASKS = 32  # drawn at once, for episodes per second
CLASSES, PER_CLASS = 1100, 20  # Omniglot's split of training
Draw = Callable[[], Any]  # [T] tasks: support [T, N*K, C, H, W] and queries [T, N*Q, C, H, W], in 0..1


def by_metarun(images: Tensor, shape: TaskShape, tasks: int) -> Draw:
    """metarun's sampler over a table in memory."""
    sampler, generator = EpisodeSampler(Table.from_classes(images), shape), torch.Generator().manual_seed(0)

    def draw() -> Any:
        support, query = sampler.sample(tasks, generator)
        return support.x, query.x

    return draw


def by_dataloader(images: Tensor, shape: TaskShape, tasks: int) -> Draw:
    """The usual way: an item of the dataset is an episode."""
    ways, shots, queries = shape

    class Episodes(Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
            members = [torch.randperm(images.shape[1])[: shots + queries] for _ in range(ways)]
            classes = torch.randperm(len(images))[:ways]
            x = torch.stack([images[row] for row in zip(classes, members)]).float() / 255
            return x[:, :shots].flatten(0, 1), x[:, shots:].flatten(0, 1)

    episodes = iter(DataLoader(Episodes(), batch_size=tasks))
    return lambda: next(episodes)


def by_learn2learn(images: Tensor, shape: TaskShape, tasks: int) -> Draw:
    """One task at a time, as in learn2learn's own loops, by its fastest transform."""
    from learn2learn.data import MetaDataset, TaskDataset
    from learn2learn.data.transforms import FusedNWaysKShots, LoadData, RemapLabels

    ways, shots, queries = shape
    labels = torch.arange(len(images)).repeat_interleave(images.shape[1])
    dataset = MetaDataset(TensorDataset(images.flatten(0, 1), labels))
    transforms = [FusedNWaysKShots(dataset, n=ways, k=shots + queries), LoadData(dataset), RemapLabels(dataset)]
    episodes = TaskDataset(dataset, transforms)

    def draw() -> Any:
        x = torch.stack([episodes.sample()[0].float() / 255 for _ in range(tasks)]).unflatten(1, (ways, -1))
        return x[:, :, :shots].flatten(1, 2), x[:, :, shots:].flatten(1, 2)

    return draw


def samplers(images: Tensor, shape: TaskShape, tasks: int = TASKS) -> dict[str, Draw]:
    """The installed samplers by name. images: [classes, per_class, C, H, W] uint8."""
    found = {"metarun": by_metarun(images, shape, tasks), "torch DataLoader": by_dataloader(images, shape, tasks)}
    if importlib.util.find_spec("learn2learn"):
        found["learn2learn TaskDataset"] = by_learn2learn(images, shape, tasks)
    return found


def medians(jobs: dict[str, Callable[[], Any]], rounds: int, times: int = 5) -> dict[str, float]:
    """Median milliseconds of each job, which runs `times` times a round; the first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for _ in range(1 + rounds):
        for name, job in jobs.items():
            began = time.perf_counter()
            for _ in range(times):
                job()
            found[name].append(1000 * (time.perf_counter() - began) / times)
    return {name: statistics.median(row[1:]) for name, row in found.items()}


def share_of_step(work: Work, execution: str, classes: int, per_class: int, rounds: int) -> str:
    """Write a table's line: what drawing the tasks of a training step costs beside the rest of it."""
    images = torch.randint(0, 256, (classes, per_class, *work.image), dtype=torch.uint8)
    draws = samplers(images, TaskShape(work.ways, work.shots, work.queries), work.tasks)
    with Metarun(execution=execution).ready(work, torch.float32, "cpu") as (train, _):
        found = medians({**draws, "train": train}, rounds, times=1)
    drawn, trained = found["metarun"], found["train"]
    share = 100 * drawn / (drawn + trained)
    return f"| {work.about} | {drawn:.2f} | {trained:.1f} | {share:.1f} % | {found['torch DataLoader']:.1f} |"


def main(rounds: int) -> int:
    prepare_cpu()  # torch is loaded already, but the allocator's setting is all that a single thread needs
    torch.set_num_threads(1)
    images = torch.randint(0, 256, (CLASSES, PER_CLASS, 1, 28, 28), dtype=torch.uint8)
    drawing = medians(samplers(images, TaskShape(5, 1, 15)), rounds)
    print("### W5: episodes of 5-way 1-shot, 15 queries, 32 at once\n")
    print("| sampler | episodes per second | times the DataLoader's |\n|---|--:|--:|")
    for name, ms in drawing.items():
        print(f"| {name} | {1000 * TASKS / ms:.0f} | {drawing['torch DataLoader'] / ms:.1f} |")

    print("\n| training step | drawing its tasks, ms | the rest, ms | drawing | by torch DataLoader, ms |")
    print("|---|--:|--:|--:|--:|")
    for item, execution, classes, per_class in (("W1q1", "vmap", CLASSES, PER_CLASS), ("W2so", "loop", 64, 600)):
        print(share_of_step(WORK[item], execution, classes, per_class, rounds), flush=True)
    print()
    print(f"Medians of {rounds} interleaved rounds; {provenance('cpu')}")
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=10, help="timings of each")
    sys.exit(main(parser.parse_args().rounds))
