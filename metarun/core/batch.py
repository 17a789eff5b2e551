"""Batches of tasks: the same types as one task, with a leading T on every tensor."""

from collections.abc import Callable
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from metarun.core.inner import one_by_one
from metarun.core.types import Task

Execution = Literal["vmap", "loop"]
T = TypeVar("T", bound=Task)


def map_tasks(function: Callable[[Any], Any], tasks: Task, execution: Execution) -> Any:
    """Apply `function` to each task and stack the results: a leading T on every tensor."""
    if execution == "vmap":
        return vmap(function)(tasks)
    with one_by_one():
        return _stack([function(task) for task in unstack(tasks)])


def batch_rows(operator: Any) -> None:
    """Give an operator of `torch.library`, whose tensors are rows [n, ...], a rule for vmap: one call for all tasks."""

    @operator.register_vmap  # type: ignore[untyped-decorator]
    def _(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        def spread(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            return (x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)).flatten(0, 1)

        rows: Tensor = operator(*(spread(x, dim) for x, dim in zip(inputs, in_dims)))
        return rows.unflatten(0, (info.batch_size, -1)), 0


def count_tasks(tasks: Task) -> int:
    """Return T."""
    return len(tree_leaves(tasks)[0])


def unstack(tasks: T) -> list[T]:
    """Split [T, ...] into T single tasks."""
    fields, structure = tree_flatten(tasks)
    return [tree_unflatten(list(one), structure) for one in zip(*fields)]


def take(tasks: T, start: int, stop: int) -> T:
    """Return the tasks start .. stop - 1."""
    taken: T = tree_map(lambda field: field[start:stop], tasks)
    return taken


def split(tasks: T, size: int | None) -> list[T]:
    """Split the tasks into chunks of at most `size`; None: one chunk."""
    total = count_tasks(tasks)
    return [take(tasks, start, start + (size or total)) for start in range(0, total, size or total)]


def _stack(results: list[Any]) -> Any:
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    if isinstance(results[0], dict):
        return {key: _stack([result[key] for result in results]) for key in results[0]}
    return tuple(_stack(list(parts)) for parts in zip(*results))
