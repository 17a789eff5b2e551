"""Generic checks of what would be asked of a GPU, made on `meta`, PyTorch's device of shapes without numbers.

In a step, in a test, and where tasks are drawn, nothing may wait for the device, copy from the host, mix tensors of
both, or make float64, which Apple's GPUs lack. A check raises AssertionError with the file and line that asks.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, get_args

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from metarun.analysis.problems import Problem, require
from metarun.config.registry import traits_of
from metarun.config.schema import Settings, TrainerSettings
from metarun.config.traits import Kind
from metarun.core.batch import Execution, map_tasks, unstack
from metarun.core.inner import draw_theta
from metarun.core.norm import collect_statistics, norm_names, use_statistics
from metarun.core.seeding import generator_for
from metarun.core.types import Dataset, Episode, Params, Split, Task, TaskShape, TaskSource, TaskSpec, Theta
from metarun.engine.evaluate import plan_rows
from metarun.engine.gradient import meta_gradient
from metarun.engine.loop import descend
from metarun.engine.prefetch import needs_copies
from metarun.engine.state import Window
from metarun.engine.watch import watch_call

GPU = torch.device("meta")
COUNTS: dict[Execution, int] = {"loop": 1, "vmap": 2}  # within vmap, PyTorch's own error may come first
T = TypeVar("T")


class Generator(torch.Generator):
    """A generator of the stand-in, for which PyTorch has none: what is drawn on its device is there."""

    device = GPU


def place(values: T) -> T:
    """Bring a tree of tensors to the stand-in, in float32."""
    placed: T = tree_map(lambda x: x.detach().to(GPU, torch.float32 if x.is_floating_point() else x.dtype), values)
    return placed


def place_problem(problem: Problem) -> Theta:
    """Bring the network and then theta to the stand-in, as a run does. Other templates stay where they were made."""
    problem.backbone.to(GPU, torch.float32)
    theta = place(draw_theta(problem.algo, 0))
    return {c: {name: p.requires_grad_() for name, p in params.items()} for c, params in theta.items()}


def watch(function: Callable[[], T]) -> T:
    """Call it. Raises AssertionError for what a GPU must not be asked, and for results that are on the host."""
    outputs: list[T] = []
    found = watch_call(lambda: outputs.append(function()), GPU, float64=False)
    require(not found, "; ".join(found))
    require_here(outputs)
    return outputs[0]


def require_here(outputs: Any) -> None:
    left = [list(x.shape) for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.device != GPU]
    require(not left, f"on the host are results of shapes {', '.join(map(str, left))}")


def check_step(problem: Callable[[], Problem], trainer: TrainerSettings) -> None:
    """Take a step of training, by vmap and by a loop. `problem` builds the method anew."""
    for execution, count in COUNTS.items():
        built = problem()
        theta, tasks = place_problem(built), place(built.tasks(count))
        watch(partial(take_step, built, theta, tasks, trainer, execution))


def take_step(problem: Problem, theta: Theta, tasks: Task, trainer: TrainerSettings, execution: Execution) -> Any:
    """Take it by plain gradient descent: what other optimisers do is PyTorch's."""
    carried = traits_of(problem.algo).carried
    learned = [p for component, params in theta.items() if component not in carried for p in params.values()]
    loss, metrics, gradient = meta_gradient(problem.algo, theta, tasks, execution=execution)
    descend(theta, gradient, torch.optim.SGD(learned, lr=0.1), trainer, carried)
    window = Window()
    window.add({"loss": loss, **metrics})
    return window.sums, gradient


def check_rows(settings: Settings, kind: Kind) -> None:
    """Test by each row of a result, by vmap and by a loop, after the statistics of norm layers were measured."""
    trained = Problem.of(settings, kind)
    theta, has_norm = place_problem(trained), bool(norm_names(trained.backbone))
    rows = [row for row in plan_rows(settings, has_norm).values() if kind == "control" or row.algo["name"] != "rule"]
    statistics: Params = {}
    if any(row.algo.get("norm") == "running" for row in rows):
        tasks = unstack(place(trained.tasks(1)))
        losses = partial(trained.algo.task_loss, theta)
        watch(lambda: statistics.update(collect_statistics(trained.backbone, lambda: list(map(losses, tasks)))))
    for row in rows:
        problem = Problem.of(settings, kind, row.algo)
        problem.backbone.to(GPU, torch.float32)
        use_statistics(problem.backbone, statistics if row.algo.get("norm") == "running" else {})
        measure = partial(problem.algo.task_metrics, theta)
        for execution, count in COUNTS.items():
            tested = place(problem.tested.sample(count, generator_for("test")))
            with torch.no_grad():
                watch(partial(map_tasks, measure, tested, execution))


def check_draws(dataset: Dataset, shape: TaskShape, rules: Sequence[str] = ()) -> None:
    """Draw tasks of each split from a dataset that was built for the stand-in, and predict by its rules."""
    for split in get_args(Split):
        source = dataset.tasks(split, shape)
        require_here(source.sample(2, generator_for("check")))
        if needs_copies(source, GPU):
            continue
        tasks = draw_there(source)
        for rule in rules:
            watch(partial(map_tasks, partial(follow, source.spec, rule), tasks, "vmap"))


def follow(spec: TaskSpec, rule: str, task: Episode) -> Tensor:
    """Predict the queries by a rule of the dataset."""
    assert spec.rule is not None, "its traits name rules, its tasks have none"
    return spec.rule(rule, task.support, task.query.x)


def draw_there(source: TaskSource) -> Any:
    """Draw tasks on the stand-in, as for training. Raises AssertionError as `watch` does."""
    return watch(lambda: source.sample(2, Generator()))
