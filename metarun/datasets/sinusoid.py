"""Regression of sine waves, generated as they are needed."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.traits import DatasetTraits
from metarun.core.types import Episode, Examples, Split, TaskShape, TaskSpec
from metarun.datasets.preprocessing import Numbers


@register("dataset", "sinusoid", DatasetTraits(kind="regression"))
@dataclass(frozen=True)
class Sinusoid:
    """y = A sin(x - p), with amplitude, phase and inputs drawn for every task (Finn et al. 2017, section 5.1).

    A is uniform in [0.1, 5], p in [0, pi], x in [-5, 5], in support and query alike. Splits differ only in the random
    numbers. `ways` has no meaning here.
    """

    device: torch.device

    def prepare(self) -> None:
        """Do nothing: tasks are generated."""

    def describe(self) -> str:
        return "sinusoid: generated while training, nothing to fetch"

    def notes(self) -> list[str]:
        """Nothing: splits differ in random numbers only, as published."""
        return []

    def identity(self) -> dict[str, Any]:
        return {"name": "sinusoid", "amplitude": [0.1, 5.0], "phase": [0.0, math.pi], "x": [-5.0, 5.0]}

    def preprocessing(self) -> dict[str, Any]:
        """Numbers as they are."""
        return Numbers().to_json()

    def tasks(self, split: Split, shape: TaskShape) -> "SinusoidTasks":
        return SinusoidTasks(shape, self.device)


@dataclass(frozen=True)
class SinusoidTasks:
    """One wave per task, and points on it, with normal noise of this standard deviation."""

    shape: TaskShape
    device: torch.device
    wave: Callable[[Tensor], Tensor] = torch.sin
    noise: float = 0.0

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("regression", (1,), 1)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """support.x and support.y [T, K, 1], query.x and query.y [T, Q, 1]."""

        def uniform(low: float, high: float, *size: int) -> Tensor:
            numbers = torch.rand(num_tasks, *size, generator=generator, device=generator.device)
            return (low + (high - low) * numbers).to(self.device)

        _, shots, queries = self.shape
        amplitude, phase = uniform(0.1, 5.0, 1, 1), uniform(0.0, math.pi, 1, 1)
        x = uniform(-5.0, 5.0, shots + queries, 1)
        y = amplitude * self.wave(x - phase)
        if self.noise:
            y = y + self.noise * torch.randn(y.shape, generator=generator, device=generator.device).to(self.device)
        return Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:]))
