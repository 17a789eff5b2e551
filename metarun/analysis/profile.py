"""`metarun profile`: where the time of a step goes, with the user's own settings."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.config.registry import traits_of
from metarun.config.schema import Settings
from metarun.core.batch import map_tasks
from metarun.core.machine import device_name, find_device
from metarun.core.seeding import generator_for
from metarun.engine.build import Experiment
from metarun.engine.evaluate import Model
from metarun.engine.loop import descend
from metarun.engine.plan import MetaGradient
from metarun.engine.state import Window
from metarun.runs.log import say, speak

STEPS = 10  # timed, after one that warms up,
SECONDS = 2.0  # as far as they take no longer than this together


class Profile(NamedTuple):
    """Where the time of a run goes."""

    parts: dict[str, float]  # part of a step -> milliseconds; validation and logging are shared out over the steps
    execution: str


@speak()
def measure(settings: Settings) -> Profile:
    """Time the parts of a run in this one process, over a few steps and a part of a validation; say what is timed."""
    say.info("preparing data and network")
    experiment = Experiment.build(settings)
    algo, trainer, source, device = experiment.algo, settings.trainer, experiment.source, experiment.device
    theta = experiment.draw_theta()
    optimizer, window = experiment.build_optimizer(theta), Window()

    def sample() -> Any:
        return source.sample(trainer.tasks_per_step, generator_for(settings.seed, "train", 0, device=device))

    tasks = sample()
    meta_gradient = MetaGradient(algo, trainer)
    say.info("choosing how to execute a step, which takes at most 3 %% of the time of %d steps", trainer.steps)
    meta_gradient.choose_plan(theta, lambda: tasks, experiment.pixels)
    plan = meta_gradient.plan
    say.info("timing a step")
    loss, metrics, gradient = meta_gradient(theta, tasks)
    row = experiment.plan_rows()["test"]
    tester, scored = experiment.build_tester(row, "val"), min(row.tasks_per_chunk, settings.eval.val_tasks)

    def adapt() -> None:
        with torch.no_grad():
            map_tasks(lambda task: algo.task_loss(theta, task)[0], tasks, plan.execution)

    def log() -> None:
        window.add({"loss": loss, **metrics})
        window.flush(0)

    statistics: dict[str, Tensor] = {}

    def collect() -> None:
        statistics.update(experiment.measure_statistics(theta))

    def validate() -> None:
        tester.score([Model(theta, statistics)], scored, plan.execution)

    def descend_once() -> None:
        descend(theta, gradient, optimizer, trainer, traits_of(algo).carried)

    parts = {
        "sampling": _milliseconds(sample, device),
        "loss after adaptation": _milliseconds(adapt, device),
        "its gradient": _milliseconds(lambda: meta_gradient(theta, tasks), device),
        "optimiser": _milliseconds(descend_once, device),
        "logging": _milliseconds(log, device) / trainer.log_every,
    }
    say.info("timing what a validation takes before its tasks, and %d of its %d tasks", scored, settings.eval.val_tasks)
    validation = _milliseconds(collect, device) + _milliseconds(validate, device) * settings.eval.val_tasks / scored
    parts["validation"] = validation / trainer.eval_every
    parts["its gradient"] = max(0.0, parts["its gradient"] - parts["loss after adaptation"])
    return Profile(parts, plan.name)


def describe(settings: Settings) -> list[str]:
    """Return a table of the parts of a training step in this one process."""
    trainer, (parts, execution) = settings.trainer, measure(settings)
    whole = sum(parts.values())
    return [
        f"{'part of a step':24}{'ms':>10}{'share':>8}",
        *(f"{name:24}{ms:10.2f}{100 * ms / whole:7.1f} %" for name, ms in parts.items()),
        f"{'together':24}{whole:10.2f}{1000 * trainer.tasks_per_step / whole:8.0f} tasks per second",
        f"logging is shared out over {trainer.log_every} steps, validation over {trainer.eval_every}",
        f"execution: {execution}",
        f"all of it in this one process, whatever trainer.workers={trainer.workers} gives",
        device_name(find_device(settings.device)),
    ]


def _milliseconds(part: Callable[[], object], device: torch.device) -> float:
    """Return the mean over some calls, with the work that they leave to the device; one call alone if it is long."""

    def time_calls(number: int) -> float:
        started = time.perf_counter()
        for _ in range(number):
            part()
        _wait(device)
        return (time.perf_counter() - started) / number

    first = time_calls(1)
    number = min(STEPS, int(SECONDS / first))
    return 1000 * (time_calls(number) if number else first)


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
