"""Batches of tasks: the same types as one task, with a leading T on every tensor."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from metarun.core.inner import one_by_one
from metarun.core.types import Episode, Examples

Execution = Literal["vmap", "loop"]


def over_tasks(function: Callable[[Episode], Any], tasks: Episode, execution: Execution) -> Any:
    """`function` of each task, its results stacked: a leading T on every tensor."""
    if execution == "vmap":
        return vmap(function)(tasks)
    with one_by_one():
        return _stacked([function(task) for task in unstack(tasks)])


def unstack(tasks: Episode) -> list[Episode]:
    """[T, ...] -> T single tasks."""
    return [
        Episode(Examples(*support), Examples(*query)) for support, query in zip(zip(*tasks.support), zip(*tasks.query))
    ]


def between(tasks: Episode, start: int, stop: int) -> Episode:
    """Tasks start .. stop - 1."""
    return Episode(*(Examples(*(field[start:stop] for field in part)) for part in tasks))


def chunks(tasks: Episode, size: int | None) -> list[Episode]:
    """The same tasks in runs of at most `size`."""
    total = len(tasks.query.y)
    return [between(tasks, start, start + (size or total)) for start in range(0, total, size or total)]


def _stacked(results: list[Any]) -> Any:
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    if isinstance(results[0], dict):
        return {key: _stacked([result[key] for result in results]) for key in results[0]}
    return tuple(_stacked(list(parts)) for parts in zip(*results))
