"""The meta-gradient: the mean over many tasks of a loss that sees one task, and its gradient in theta."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial

import torch
from torch import Tensor
from torch.func import vmap

from metarun.core.batch import Execution, count_tasks, split, take, unstack
from metarun.core.inner import one_by_one
from metarun.core.types import Algorithm, Metrics, Task, Theta
from metarun.engine.distributed import ALONE, Ranks

Part = Callable[[Theta, Task], tuple[Metrics, list[Tensor]]]  # sums over some tasks: metrics, gradient


def meta_gradient(
    algo: Algorithm,
    theta: Theta,
    tasks: Task,
    *,
    execution: Execution,
    tasks_per_chunk: int | None = None,
    ranks: Ranks = ALONE,
    part: Part | None = None,
) -> tuple[Tensor, Metrics, Theta]:
    """Return the mean loss [], the mean metrics and the gradient of the mean loss in theta, over the `tasks` of all
    ranks. `part` computes the sums over a chunk, by default as `sum_tasks` does.
    """
    return average(sum_chunks(part or sum_tasks(algo, execution), execution, tasks_per_chunk), theta, tasks, ranks)


def average(sums: Part, theta: Theta, tasks: Task, ranks: Ranks = ALONE) -> tuple[Tensor, Metrics, Theta]:
    """See `meta_gradient`. `sums` computes those over this rank's share of the tasks."""
    total = count_tasks(tasks)
    metrics, gradient = sums(theta, take(tasks, *ranks.share(total)))
    means = [value / total for value in (*metrics.values(), *gradient)]
    ranks.add(means)
    remaining = iter(means)
    metrics = {name: next(remaining) for name in metrics}
    return metrics.pop("loss"), metrics, {c: {n: next(remaining) for n in params} for c, params in theta.items()}


def sum_chunks(part: Part, execution: Execution, tasks_per_chunk: int | None) -> Part:
    """Return a function to the sums over all tasks, chunk by chunk, or with `loop` task by task.

    Each chunk's graph is freed before the next is built, so memory follows the chunk, and the result changes by
    rounding alone.
    """

    def sums(theta: Theta, tasks: Task) -> tuple[Metrics, list[Tensor]]:
        pieces = unstack(tasks) if execution == "loop" else split(tasks, tasks_per_chunk)
        metrics, gradient = part(theta, pieces[0])
        for piece in pieces[1:]:
            more, further = part(theta, piece)
            metrics = {name: value + more[name] for name, value in metrics.items()}
            gradient = [g + h for g, h in zip(gradient, further)]
        return metrics, gradient

    return sums


def sum_tasks(algo: Algorithm, execution: Execution, bfloat16: bool = False) -> Part:
    """Return a function to the summed metrics, with the loss among them, and the summed gradient of a chunk [t, ...],
    or with `loop` of one task. `bfloat16`: under autocast.
    """

    def part(theta: Theta, tasks: Task) -> tuple[Metrics, list[Tensor]]:
        leaves = [p for params in theta.values() for p in params.values()]
        with torch.autocast(leaves[0].device.type, torch.bfloat16) if bfloat16 else nullcontext():
            if execution == "vmap":
                losses, metrics = vmap(partial(algo.task_loss, theta))(tasks)
                loss, metrics = losses.sum(), {name: value.sum(0) for name, value in metrics.items()}
            else:
                with one_by_one():
                    loss, metrics = algo.task_loss(theta, tasks)
        gradient = torch.autograd.grad(loss, leaves, materialize_grads=True)
        return {"loss": loss.detach(), **{name: value.detach() for name, value in metrics.items()}}, list(gradient)

    return part
