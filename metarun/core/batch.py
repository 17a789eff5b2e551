"""Batches of tasks: the same types as one task, with a leading T on every tensor."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from metarun.core.inner import one_by_one
from metarun.core.types import Episode, Examples

Execution = Literal["vmap", "loop"]


def map_tasks(function: Callable[[Episode], Any], tasks: Episode, execution: Execution) -> Any:
    """Apply `function` to each task and stack the results: a leading T on every tensor."""
    if execution == "vmap":
        return vmap(function)(tasks)
    with one_by_one():
        return _stack([function(task) for task in unstack(tasks)])


def unstack(tasks: Episode) -> list[Episode]:
    """Split [T, ...] into T single tasks."""
    return [
        Episode(Examples(*support), Examples(*query)) for support, query in zip(zip(*tasks.support), zip(*tasks.query))
    ]


def take(tasks: Episode, start: int, stop: int) -> Episode:
    """Return the tasks start .. stop - 1."""
    return Episode(*(Examples(*(field[start:stop] for field in part)) for part in tasks))


def split(tasks: Episode, size: int | None) -> list[Episode]:
    """Split the tasks into chunks of at most `size`; None: one chunk."""
    total = len(tasks.query.y)
    return [take(tasks, start, start + (size or total)) for start in range(0, total, size or total)]


def _stack(results: list[Any]) -> Any:
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    if isinstance(results[0], dict):
        return {key: _stack([result[key] for result in results]) for key in results[0]}
    return tuple(_stack(list(parts)) for parts in zip(*results))
