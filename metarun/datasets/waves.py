"""Regression of waves of several forms, with noise: what a method trained on sinusoids is tested on beside them."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import NonNegative
from metarun.config.traits import DatasetTraits
from metarun.core.types import Split, TaskShape
from metarun.datasets.sinusoid import Sinusoid, SinusoidTasks

FORMS: dict[str, Callable[[Tensor], Tensor]] = {
    "sine": torch.sin,
    "square": lambda angle: torch.sin(angle).sign(),
    "triangle": lambda angle: torch.sin(angle).asin() * 2 / math.pi,
    "sawtooth": lambda angle: torch.remainder(angle / math.pi + 1, 2) - 1,
}


@register("dataset", "waves", DatasetTraits(kind="regression"))
@dataclass(frozen=True)
class Waves(Sinusoid):
    """As sinusoids, of the same periods, heights and phases, but of another form, or with normal noise.

    The noise is in support and query alike.
    """

    wave: Literal["sine", "square", "triangle", "sawtooth"]
    noise: NonNegative  # standard deviation
    device: torch.device

    def describe(self) -> str:
        return "waves: generated while training, nothing to fetch"

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"name": "waves", "wave": self.wave, "noise": self.noise}

    def tasks(self, split: Split, shape: TaskShape) -> SinusoidTasks:
        return SinusoidTasks(shape, self.device, FORMS[self.wave], self.noise)
