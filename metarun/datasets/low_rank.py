"""Ratings of items by users whose tastes are few, generated as they are needed: a small world of recommendation."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count, Positive
from metarun.config.traits import DatasetTraits
from metarun.core.seeding import generator_for
from metarun.core.solvers import ridge
from metarun.core.types import Episode, Examples, Split, TaskShape, TaskSpec
from metarun.datasets.preprocessing import Numbers


@register("dataset", "low_rank", DatasetTraits(kind="regression", metric="mae", rules=("bayes", "ridge", "mean")))
@dataclass(frozen=True)
class LowRank:
    """A user is a task, and rates items by y = x A u + noise.

    x are the item's known factors, from N(0, I). A [items' factors, tastes] is the same for all users and unknown; u,
    from N(0, I), is the user's. A is scaled so that a rating without its noise has variance 1. Splits differ only in
    the random numbers.
    """

    factors: Count  # of an item, known
    tastes: Count  # of a user, hidden
    noise: Positive  # standard deviation
    device: torch.device

    def prepare(self) -> None:
        """Do nothing: tasks are generated."""

    def describe(self) -> str:
        return "low_rank: generated while training, nothing to fetch"

    def notes(self) -> list[str]:
        """Nothing: splits differ in random numbers only."""
        return []

    def identity(self) -> dict[str, Any]:
        return {"name": "low_rank", "factors": self.factors, "tastes": self.tastes, "noise": self.noise}

    def preprocessing(self) -> dict[str, Any]:
        """Numbers as they are."""
        return Numbers().to_json()

    def tasks(self, split: Split, shape: TaskShape) -> "LowRankTasks":
        """A is the same in every run."""
        drawn = torch.randn(self.factors, self.tastes, generator=generator_for("low_rank", self.factors, self.tastes))
        return LowRankTasks((drawn / drawn.norm()).to(self.device), self.noise, shape)


@dataclass(frozen=True)
class LowRankTasks:
    """Users, and the items that they rate: `shots` in the support, `queries` others. `ways` has no meaning."""

    directions: Tensor  # A: [factors, tastes]
    noise: float
    shape: TaskShape

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("regression", (len(self.directions),), 1, metric="mae", rule=self.predict)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """support.x [T, K, factors], support.y [T, K, 1]; query.x [T, Q, factors], query.y [T, Q, 1]."""

        def draw(*size: int) -> Tensor:
            numbers = torch.randn(num_tasks, *size, generator=generator, device=generator.device)
            return numbers.to(self.directions.device)

        _, shots, queries = self.shape
        factors, tastes = self.directions.shape
        u, x = draw(tastes, 1), draw(shots + queries, factors)
        y = x @ (self.directions @ u) + self.noise * draw(shots + queries, 1)
        return Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:]))

    def predict(self, rule: str, support: Examples, x: Tensor) -> Tensor:
        """By `bayes`, who knows A and the noise and is as near as anybody can be; `ridge`, who knows the noise, and
        takes all directions to be as likely; or the `mean` rating of the user. x: [n, factors] -> [n, 1].
        """
        if rule == "mean":
            return support.y.mean(0).expand(len(x), 1)
        factors = len(self.directions)
        any_direction = torch.eye(factors, dtype=x.dtype, device=x.device) / factors**0.5
        known = self.directions.to(x.dtype) if rule == "bayes" else any_direction
        return x @ known @ ridge(support.x @ known, support.y, x.new_full((), self.noise**2))
