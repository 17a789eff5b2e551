"""Supports of a fixed size whose classes have different numbers of shots.

The shares of the classes are drawn from a Dirichlet distribution, as those of the queries in Veilleux et al. 2021,
https://arxiv.org/abs/2204.11181. Every class keeps one shot at least.
"""

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.config.registry import declaration, register
from metarun.config.schema import Count, Positive
from metarun.config.traits import ProbeTraits
from metarun.core.types import Episode, Examples
from metarun.probes.draw import draw_lines
from metarun.probes.noise import find_places
from metarun.probes.probe import Figures, Finding, Subject, compare, estimate, mean_of, require

BALANCED = "balanced"


@register("probe", "imbalance", ProbeTraits(kinds=("classification",)))
@dataclass(frozen=True)
class Imbalance:
    """Accuracy where some classes have many shots and others few, at the same total."""

    concentrations: list[Positive]
    most: Count
    queries: Count

    def run(self, subject: Subject) -> Finding:
        row, name = subject.row, subject.row.algo["name"]
        require(row.shots > 1, "eval.shots is 1: shots cannot differ then, give shots=5 to a method that can have more")
        require(self.most >= row.shots, f"imbalance.most is {self.most}: it must be at least the shots, {row.shots}")
        order = declaration("algo", name).traits.order
        require(order != "mixed", f"algo={name} reads support and queries in one order: its support has no fixed shots")
        tester = subject.build_tester(replace(row, shots=self.most, queries=self.queries))
        found: dict[float | None, Tensor] = {
            concentration: subject.score_changed(tester, partial(thin, row.shots, concentration))
            for concentration in (None, *self.concentrations)
        }
        clean = found.pop(None)
        table: list[Figures] = [
            {"concentration": key, subject.headline: estimate(scores), "lost": compare(clean, scores)}
            for key, scores in ((BALANCED, clean), *found.items())
        ]
        return Finding(
            table=table,
            score=mean_of(found or {None: clean}),
            scored=f"mean {subject.headline} over concentrations",
            draw=partial(draw_lines, table, None, "concentration", subject.headline),
            notes=[f"tasks have {self.queries} queries per class, so that there is room for up to {self.most} shots"],
        )


def thin(shots: int, concentration: float | None, tasks: Episode, generator: torch.Generator) -> Episode:
    """Keep the first examples of each class, `shots` of every one or as many as are drawn, in the order they have."""
    (x, y), query = tasks
    classes = y[0].unique()
    most = y.shape[1] // len(classes)
    rng = np.random.default_rng(generator.initial_seed())
    counts = torch.from_numpy(np.stack([draw_shots(rng, len(classes), shots, most, concentration) for _ in y]))
    limit = counts.to(y.device).gather(1, rank(y))
    rows = (find_places(y) < limit).nonzero()[:, 1].view(len(y), -1)
    return Episode(Examples(x[torch.arange(len(y))[:, None], rows], y.gather(1, rows)), query)


def rank(y: Tensor) -> Tensor:
    """[T, n]: the place of each label among those of its task."""
    return torch.stack([labels.unique(return_inverse=True)[1] for labels in y])


def draw_shots(
    rng: np.random.Generator, ways: int, shots: int, most: int, concentration: float | None
) -> NDArray[np.int64]:
    """[N], from 1 to `most`, with the sum ways * shots. What a full class cannot take goes to the others."""
    shares = rng.dirichlet(np.full(ways, concentration or 1.0))
    if concentration is None:
        return np.full(ways, shots)
    counts = np.ones(ways, np.int64)
    for _ in range(ways * (shots - 1)):  # to the class that is furthest below its share
        missing = np.where(counts < most, shares * ways * (shots - 1) - (counts - 1), -np.inf)
        counts[missing.argmax()] += 1
    return counts
