"""The training of a run: its loop put together, from the last checkpoint on, with what it writes."""

import functools
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from metarun.config.errors import ConfigError, Failed, Stopped
from metarun.config.registry import build, metric
from metarun.config.schema import Settings
from metarun.core.inner import draw_theta
from metarun.core.objectives import metric_of
from metarun.core.seeding import seed_for
from metarun.core.types import Episode, Metrics, Theta
from metarun.engine import checkpoint
from metarun.engine.build import Experiment
from metarun.engine.capture import CapturedStep
from metarun.engine.distributed import Ranks
from metarun.engine.loop import NonFiniteLoss, descended, train
from metarun.engine.plan import Executor
from metarun.engine.prefetch import Ahead, is_elsewhere
from metarun.engine.state import Log, Progress, Silence, State, Window
from metarun.runs.folder import RunFolder
from metarun.runs.log import RunLog, say
from metarun.runs.loggers import Logger


def trained(experiment: Experiment, folder: RunFolder | None, about: dict[str, Any], ranks: Ranks) -> Progress:
    """Train from the last checkpoint on, as rank 0 with the run's folder, or without one as another."""
    settings, trainer = experiment.settings, experiment.settings.trainer
    state = _restored(experiment, folder, ranks)
    progress = state.progress
    headline = metric_of(experiment.source.spec)
    sign = 1 if metric(headline).higher_is_better else -1
    tester = experiment.tester(experiment.eval_rows()["test"], "val")
    statistics = functools.lru_cache(maxsize=1)(lambda step: experiment.statistics(state.theta))
    executor = Executor(experiment.algo, trainer, ranks)
    tasks_of, meta_step = stepping(experiment, state, executor, ranks)

    def validate() -> tuple[float, dict[str, Any]]:
        tasks = settings.eval.val_tasks
        scores = tester.scores(state.theta, statistics(progress.step), tasks, executor.execution, ranks)
        summary = scores.summary()
        means = {name: value["mean"] for name, value in summary.items()}
        return sign * means[headline], means | {"ci95": summary[headline]["ci95"]}

    def save(name: str) -> None:
        if folder is None:
            return
        tensors = {
            "theta": state.theta,
            "optimizer": state.optimizer.state_dict(),
            "statistics": statistics(progress.step),
            "window": asdict(state.window),
        }
        validation = None if progress.best is None else sign * progress.best
        facts = {"step": progress.step, "validation": validation, "progress": asdict(progress)}
        checkpoint.save(folder.checkpoint(name), tensors, about | facts)
        if trainer.keep_best > 1:
            folder.keep_leaders([step for _, step in progress.leaders])

    schedule = build("schedule", settings.schedule)
    log = _log(settings, folder, about, progress.step)
    try:
        if progress.plan is None:
            started = time.perf_counter()
            executor.settle(state.theta, tasks_of(progress.step))
            progress.seconds += time.perf_counter() - started
            progress.plan = executor.plan
        executor.plan = progress.plan
        train(
            state,
            meta_step,
            lambda step: schedule.factor(step, trainer.steps),
            trainer,
            validate=validate,
            save=save,
            log=log,
            ranks=ranks,
        )
    except NonFiniteLoss as error:
        last = folder and folder.last
        kept = f"the last good checkpoint is {last}" if last and last.exists() else "no checkpoint was written yet"
        raise Failed(f"training diverged: {error}; {kept}; try a smaller rate or trainer.clip_norm") from error
    finally:
        log.close()
    if progress.stopped:
        where = f"stopped by {progress.stopped} at step {progress.step}, saved"
        raise Stopped(f"{where}; continue with: metarun resume {folder and folder.path}")
    return progress


def stepping(
    experiment: Experiment, state: State, executor: Executor, ranks: Ranks
) -> tuple[Callable[[int], Episode], Callable[[int], Metrics]]:
    """The tasks of a step, and the step itself, from its number: on one GPU that holds the data, a CUDA graph."""
    settings, source, device = experiment.settings.trainer, experiment.source, experiment.device

    def seed_of(step: int) -> int:
        return seed_for(experiment.settings.seed, "train", step)

    def drawn(generator: torch.Generator) -> Episode:
        return source.sample(settings.tasks_per_step, generator)

    def drawn_for(step: int) -> Episode:
        return drawn(torch.Generator(device).manual_seed(seed_of(step)))

    def descend(tasks: Episode) -> Metrics:
        return descended(experiment.algo, state, tasks, executor, settings)

    elsewhere = is_elsewhere(source, device)
    tasks_of = Ahead(drawn_for, device) if elsewhere else drawn_for

    def plainly(step: int) -> Metrics:
        return descend(tasks_of(step))

    if device.type != "cuda" or not settings.cuda_graph:
        return tasks_of, plainly
    obstacles = {
        "several processes share a step": ranks.count > 1,
        "the data is not on the device": elsewhere,
        f"optimizer={experiment.settings.optimizer['name']} has its rate on the host": not all(
            isinstance(group["lr"], Tensor) for group in state.optimizer.param_groups
        ),
    }
    if reasons := [reason for reason, holds in obstacles.items() if holds]:
        say.info("of a step only the gradient is recorded as a CUDA graph: %s", ", ".join(reasons))
        return tasks_of, plainly
    executor.records = False

    def instead(step: int) -> Metrics:
        executor.records = True
        return plainly(step)

    return tasks_of, CapturedStep(lambda generator: descend(drawn(generator)), seed_of, state, device, instead)


def _log(settings: Settings, folder: RunFolder | None, about: dict[str, Any], step: int) -> Log:
    if folder is None:
        return Silence()
    logger: Logger = build("logger", settings.logger)
    logger.open(folder.path, about["config"])
    return RunLog(folder.path, logger, step)


def _restored(experiment: Experiment, folder: RunFolder | None, ranks: Ranks) -> State:
    """The state that the last checkpoint holds, or a new one."""
    if not ranks.agreed(folder is not None and folder.last.exists()):
        theta = experiment.initial_theta()
        return State(theta, experiment.optimizer(theta))
    tensors, facts = loaded(experiment, folder.last if folder else None, ranks)
    theta = experiment.trainable(tensors["theta"])
    optimizer = experiment.optimizer(theta)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": tensors["optimizer"]["state"]})
    state = State(theta, optimizer, Progress(**facts["progress"]), Window(**tensors["window"]))
    if state.progress.step < experiment.settings.trainer.steps:
        say.info("continuing at step %d", state.progress.step)
    return state


def loaded(experiment: Experiment, path: Path | None, ranks: Ranks) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors, on the device, and facts of a checkpoint that rank 0 reads.

    Raises ConfigError where it is of another model.
    """

    def shapes(theta: Theta) -> dict[str, dict[str, Any]]:
        return {component: {name: p.shape for name, p in params.items()} for component, params in theta.items()}

    tensors, facts = ranks.agreed(checkpoint.load(path) if path else ({}, {}))
    if shapes(tensors["theta"]) != shapes(draw_theta(experiment.algo, experiment.settings.seed)):
        raise ConfigError(f"the checkpoint {path} is of another model: its weights have other names or shapes")
    return tree_map(lambda value: value.to(experiment.device) if isinstance(value, Tensor) else value, tensors), facts
