"""How many tasks are run at once. No algorithm knows: it sees one task; here is the mean over many."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from metarun.types import Algorithm, Episode, Examples, Metrics, Theta

Execution = Literal["vmap", "loop"]


def over_tasks(function: Callable[[Episode], Any], tasks: Episode, execution: Execution) -> Any:
    """`function` of each task, its results stacked: a leading T on every tensor."""
    if execution == "vmap":
        return vmap(function)(tasks)
    return _stacked([function(task) for task in unstack(tasks)])


def unstack(tasks: Episode) -> list[Episode]:
    """[T, ...] -> T single tasks."""
    return [
        Episode(Examples(*support), Examples(*query)) for support, query in zip(zip(*tasks.support), zip(*tasks.query))
    ]


def chunks(tasks: Episode, size: int | None) -> list[Episode]:
    """The same tasks in runs of at most `size`."""
    total = len(tasks.query.y)
    return [
        Episode(*(Examples(*(field[start : start + (size or total)] for field in part)) for part in tasks))
        for start in range(0, total, size or total)
    ]


def meta_gradient(
    algo: Algorithm, theta: Theta, tasks: Episode, *, execution: Execution, tasks_per_chunk: int | None = None
) -> tuple[Tensor, Metrics, Theta]:
    """Losses [T], metrics [T, ...], and the gradient of the mean loss in theta.

    Each chunk's graph is freed before the next is built: memory follows the chunk, the result only rounding.
    """
    leaves = [p for params in theta.values() for p in params.values()]
    gradient = [torch.zeros_like(p) for p in leaves]
    parts = []
    for chunk in chunks(tasks, tasks_per_chunk):
        losses, metrics = over_tasks(lambda task: algo.task_loss(theta, task), chunk, execution)
        mean = losses.sum() / len(tasks.query.y)
        for total, g in zip(gradient, torch.autograd.grad(mean, leaves, materialize_grads=True)):
            total += g
        parts.append((losses.detach(), {name: value.detach() for name, value in metrics.items()}))
    losses, metrics = (_joined(part) for part in zip(*parts))
    remaining = iter(gradient)
    return losses, metrics, {c: {name: next(remaining) for name in params} for c, params in theta.items()}


def _stacked(results: list[Any]) -> Any:
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    if isinstance(results[0], dict):
        return {key: _stacked([result[key] for result in results]) for key in results[0]}
    return tuple(_stacked(list(parts)) for parts in zip(*results))


def _joined(parts: tuple[Any, ...]) -> Any:
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
