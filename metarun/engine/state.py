"""What training changes: all that a checkpoint brings back, and what the loop tells about it."""

from dataclasses import dataclass, field
from typing import Any, Protocol, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from metarun.core.types import Metrics, Theta


class NonFiniteLoss(Exception):
    """Training diverged: the loss or a weight is not a finite number."""


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

    def rank(self, score: float, places: int) -> list[str]:
        """Note the validation score of this step. Returns the checkpoints to save: "best" for the best score so far,
        "best-STEP" for one of several `places`.
        """
        checkpoints = []
        self.unimproved += 1
        if self.best is None or score > self.best:
            self.best, self.best_step, self.unimproved = score, self.step, 0
            checkpoints.append("best")
        self.leaders = sorted([*self.leaders, [score, self.step]], key=lambda leader: -leader[0])[:places]
        if places > 1 and [score, self.step] in self.leaders:
            checkpoints.append(f"best-{self.step}")
        return checkpoints


@dataclass
class Window:
    """Sums of what happened since the last log line; they stay on the device."""

    steps: int = 0
    sums: Metrics = field(default_factory=dict)

    def add(self, means: Metrics) -> None:
        """Add the means of one step."""
        self.steps += 1
        for name, mean in means.items():
            self.sums[name] = self.sums[name] + mean if name in self.sums else mean.clone()  # a graph reuses it

    def flush(self, step: int) -> dict[str, Any]:
        """Return the means per step since the last flush: the one synchronisation with the device.

        Raises NonFiniteLoss.
        """
        means = {name: (total / self.steps).tolist() for name, total in self.sums.items()}
        if not torch.tensor(means["loss"]).isfinite():
            raise NonFiniteLoss(f"the loss is {means['loss']} at step {step}")
        self.steps, self.sums = 0, {}
        return means


@dataclass
class State:
    """All that training changes."""

    theta: Theta
    optimizer: torch.optim.Optimizer
    progress: Progress = field(default_factory=Progress)
    window: Window = field(default_factory=Window)

    def list_tensors(self) -> list[Tensor]:
        """What a step changes in place: theta and the optimiser's state."""
        return cast(list[Tensor], tree_leaves((self.theta, dict(self.optimizer.state))))


class Log(Protocol):
    """What the training loop tells."""

    def bar(self, step: int, steps: int) -> "tqdm[Any]": ...
    def metrics(self, step: int, split: str, values: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Silence:
    """The log of a process that only helps."""

    def bar(self, step: int, steps: int) -> "tqdm[Any]":
        return tqdm(disable=True)

    def metrics(self, step: int, split: str, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...
