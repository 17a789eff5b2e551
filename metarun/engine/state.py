"""What training changes, and so all that a checkpoint brings back."""

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from tqdm import tqdm

from metarun.core.types import Metrics, Theta


@dataclass
class Progress:
    """Where training stands: everything beside the tensors that a checkpoint must bring back."""

    step: int = 0
    best: float | None = None  # best validation score so far; more is better
    best_step: int | None = None
    unimproved: int = 0  # validations since then
    seconds: float = 0.0  # spent in training steps, over all sittings
    stopped: str | None = None  # the signal that ended this sitting early; never saved
    plan: dict[str, Any] | None = None  # how tasks are executed, once that is settled
    leaders: list[list[float]] = field(default_factory=list)  # score and step of the best validations, best first


@dataclass
class Window:
    """Sums of what happened since the last log line; they stay on the device."""

    steps: int = 0
    sums: Metrics = field(default_factory=dict)

    def add(self, means: Metrics) -> None:
        self.steps += 1
        for name, mean in means.items():
            self.sums[name] = self.sums[name] + mean if name in self.sums else mean

    def flush(self) -> dict[str, Any]:
        """Means per step since the last flush: the one synchronisation with the device."""
        means = {name: (total / self.steps).tolist() for name, total in self.sums.items()}
        self.steps, self.sums = 0, {}
        return means


@dataclass
class State:
    """All that training changes, and so all that a checkpoint brings back."""

    theta: Theta
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    window: Window = field(default_factory=Window)


class Log(Protocol):
    """What the training loop tells."""

    def bar(self, step: int, steps: int) -> tqdm: ...
    def metrics(self, step: int, split: str, values: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Silence:
    """The log of a process that only helps."""

    def bar(self, step: int, steps: int) -> tqdm:
        return tqdm(disable=True)

    def metrics(self, step: int, split: str, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...
