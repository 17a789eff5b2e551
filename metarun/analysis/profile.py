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

STEPS = 10  # timed; two more warm up


class Profile(NamedTuple):
    """Where the time of a run goes."""

    parts: dict[str, float]  # part of a step -> milliseconds; validation and logging are shared out over the steps
    execution: str


def measure(settings: Settings) -> Profile:
    """Time the parts of a run in this one process, over a few steps and one validation."""
    experiment = Experiment.build(settings)
    algo, trainer, source, device = experiment.algo, settings.trainer, experiment.source, experiment.device
    theta = experiment.draw_theta()
    optimizer, window = experiment.build_optimizer(theta), Window()

    def sample() -> Any:
        return source.sample(trainer.tasks_per_step, generator_for(settings.seed, "train", 0, device=device))

    tasks = sample()
    meta_gradient = MetaGradient(algo, trainer)
    meta_gradient.choose_plan(theta, lambda: tasks)
    loss, metrics, gradient = meta_gradient(theta, tasks)
    row = experiment.plan_rows()["test"]
    tester = experiment.build_tester(row, "val")

    def adapt() -> None:
        with torch.no_grad():
            map_tasks(lambda task: algo.task_loss(theta, task)[0], tasks, meta_gradient.plan.execution)

    def log() -> None:
        window.add({"loss": loss, **metrics})
        window.flush(0)

    def collect() -> dict[str, Tensor]:
        return experiment.measure_statistics(theta)

    def validate() -> None:
        tester.score([Model(theta, statistics)], settings.eval.val_tasks, meta_gradient.plan.execution)

    def descend_once() -> None:
        descend(theta, gradient, optimizer, trainer, traits_of(algo).carried)

    statistics = collect()
    validation = _milliseconds(collect, device, 1) + _milliseconds(validate, device, 1)
    parts = {
        "sampling": _milliseconds(sample, device, STEPS),
        "loss after adaptation": _milliseconds(adapt, device, STEPS),
        "its gradient": _milliseconds(lambda: meta_gradient(theta, tasks), device, STEPS),
        "optimiser": _milliseconds(descend_once, device, STEPS),
        "logging": _milliseconds(log, device, STEPS) / trainer.log_every,
        "validation": validation / trainer.eval_every,
    }
    parts["its gradient"] = max(0.0, parts["its gradient"] - parts["loss after adaptation"])
    chunk = meta_gradient.plan.tasks_per_chunk or "all"
    return Profile(parts, f"{meta_gradient.plan.execution}, tasks_per_chunk: {chunk}")


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


def _milliseconds(part: Callable[[], object], device: torch.device, steps: int) -> float:
    """Return the mean over some calls, with the work that they leave to the device."""
    for _ in range(min(2, steps)):
        part()
    _wait(device)
    started = time.perf_counter()
    for _ in range(steps):
        part()
    _wait(device)
    return 1000 * (time.perf_counter() - started) / steps


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
