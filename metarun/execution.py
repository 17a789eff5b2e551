"""How many tasks are run at once, and by whom. No algorithm knows: it sees one task; here is the mean over many."""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.func import vmap

from metarun.inner import one_by_one
from metarun.ranks import ALONE, Ranks
from metarun.types import Algorithm, Episode, Examples, Metrics, Theta

Execution = Literal["vmap", "loop"]
Part = Callable[[Theta, Episode], tuple[Metrics, list[Tensor]]]  # sums over some tasks: metrics, gradient


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


def meta_gradient(
    algo: Algorithm,
    theta: Theta,
    tasks: Episode,
    *,
    execution: Execution,
    tasks_per_chunk: int | None = None,
    ranks: Ranks = ALONE,
    part: Part | None = None,
) -> tuple[Tensor, Metrics, Theta]:
    """Mean loss [], mean metrics [...], and the gradient of the mean loss in theta, over `tasks` of all ranks.

    Each part's graph is freed before the next is built: memory follows the chunk (with `loop`, one task), the
    result only rounding. `part` computes the sums over a chunk, or a task; by default `sums(algo, execution)`.
    """
    part = part or sums(algo, execution)
    total = len(tasks.query.y)
    mine = between(tasks, *ranks.share(total))
    pieces = unstack(mine) if execution == "loop" else chunks(mine, tasks_per_chunk)
    metrics, gradient = part(theta, pieces[0])
    for piece in pieces[1:]:
        more, further = part(theta, piece)
        metrics = {name: value + more[name] for name, value in metrics.items()}
        gradient = [g + h for g, h in zip(gradient, further)]
    means = [value / total for value in (*metrics.values(), *gradient)]
    ranks.add(means)
    remaining = iter(means)
    metrics = {name: next(remaining) for name in metrics}
    return metrics.pop("loss"), metrics, {c: {n: next(remaining) for n in params} for c, params in theta.items()}


def sums(algo: Algorithm, execution: Execution, bfloat16: bool = False) -> Part:
    """Metrics, with the loss among them, and gradient: of a chunk [t, ...], or with `loop` of one task, summed.

    `bfloat16`: under autocast.
    """

    def part(theta: Theta, tasks: Episode) -> tuple[Metrics, list[Tensor]]:
        leaves = [p for params in theta.values() for p in params.values()]
        with torch.autocast(leaves[0].device.type, torch.bfloat16, enabled=bfloat16):
            if execution == "vmap":
                losses, metrics = vmap(partial(algo.task_loss, theta))(tasks)
                loss, metrics = losses.sum(), {name: value.sum(0) for name, value in metrics.items()}
            else:
                with one_by_one():
                    loss, metrics = algo.task_loss(theta, tasks)
        gradient = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return {"loss": loss.detach(), **{name: value.detach() for name, value in metrics.items()}}, list(gradient)

    return part


def _stacked(results: list[Any]) -> Any:
    if isinstance(results[0], Tensor):
        return torch.stack(results)
    if isinstance(results[0], dict):
        return {key: _stacked([result[key] for result in results]) for key in results[0]}
    return tuple(_stacked(list(parts)) for parts in zip(*results))
