"""The items of work that scripts/benchmark.py times, and the weights and tasks that all implementations start from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import build
from metarun.core.types import Algorithm, Episode, Examples, TaskSpec, Theta
from metarun.engine.build import build_algorithm

Step = Callable[[], None]  # trains once
Gradient = Callable[[], dict[str, Tensor]]  # the meta-gradient of the mean loss, by metarun's parameter names


@dataclass(frozen=True)
class Work:
    """An item of work. gflop: operations of a step if nothing is computed twice; None if not counted."""

    about: str
    algo: dict[str, Any]
    backbone: dict[str, Any]
    image: tuple[int, int, int]
    ways: int
    shots: int
    queries: int
    tasks: int
    gflop: float | None = None


def maml(lr: float, steps: int, first_order: bool = False) -> dict[str, Any]:
    return {"name": "maml", "inner_lr": lr, "inner_steps": steps, "first_order": first_order, "norm": "batch"}


REPTILE = {"name": "reptile", "inner_lr": 1e-3, "inner_steps": 5, "inner_batch": 10, "beta2": 0.999, "eps": 1e-8}
STRIDED, POOLED = {"name": "conv4_strided", "filters": 64}, {"name": "conv4", "filters": 64}
SMALL, LARGE = (1, 28, 28), (3, 84, 84)
WORK = {
    "W1q1": Work("MAML, Omniglot 5-way 1-shot, 1 query", maml(0.4, 1), STRIDED, SMALL, 5, 1, 1, 32, 10.0),
    "W1q15": Work("MAML, Omniglot 5-way 1-shot, 15 queries", maml(0.4, 1), STRIDED, SMALL, 5, 1, 15, 32, 45.2),
    "W2so": Work("MAML, 84x84, 5 steps", maml(0.01, 5), {"name": "conv4", "filters": 32}, LARGE, 5, 1, 15, 4, 88.7),
    "W2fo": Work(
        "FOMAML, 84x84, 5 steps", maml(0.01, 5, True), {"name": "conv4", "filters": 32}, LARGE, 5, 1, 15, 4, 60.7
    ),
    "W3omni": Work(
        "ProtoNet, Omniglot 60-way 5-shot", {"name": "protonet", "norm": "running"}, POOLED, SMALL, 60, 5, 5, 1, 34.8
    ),
    "W3mini": Work(
        "ProtoNet, 84x84, 20-way 5-shot", {"name": "protonet", "norm": "running"}, POOLED, LARGE, 20, 5, 15, 1, 223.0
    ),
    "W4": Work(
        "Reptile, Omniglot 5-way, 5 steps of Adam", {**REPTILE, "norm": "batch"}, STRIDED, SMALL, 5, 10, 1, 5, 3.9
    ),
}


def make_tasks(work: Work, dtype: torch.dtype, device: str) -> Episode:
    """Random pictures in order of class, like metarun's sampler: support.x [T, N*K, C, H, W]."""
    generator = torch.Generator().manual_seed(0)

    def examples(per_class: int) -> Examples:
        x = torch.rand(work.tasks, work.ways * per_class, *work.image, generator=generator)
        y = torch.arange(work.ways, device=device).repeat_interleave(per_class)
        return Examples(x.to(device, dtype), y.repeat(work.tasks, 1))

    return Episode(examples(work.shots), examples(work.queries))


def make_algo(work: Work, dtype: torch.dtype, device: str) -> tuple[Algorithm, Theta]:
    """The algorithm and its starting weights, the same in every process."""
    torch.manual_seed(0)
    backbone = build("backbone", work.backbone, input_shape=work.image)
    algo = build_algorithm(work.algo, backbone, TaskSpec("classification", work.image, work.ways))
    backbone.to(device, dtype)
    theta = {c: {n: p.to(device, dtype) for n, p in params.items()} for c, params in algo.init().items()}
    return algo, theta


def make_optimizer(work: Work, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Adam; for Reptile a step of length 1, to the mean of the tasks' weights."""
    return torch.optim.SGD(groups, lr=1.0) if work.algo["name"] == "reptile" else torch.optim.Adam(groups, lr=1e-3)


def synchronize(device: str) -> None:
    """Wait until the device has done what was asked of it."""
    if device != "cpu":
        torch.accelerator.synchronize(device)
