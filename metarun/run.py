"""A run in its folder: train, test, report; stopped and continued, or tested again."""

import errno
import functools
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from metarun import checkpoint
from metarun.environment import STARTED, commit, device_name, peak_memory_mib, versions
from metarun.errors import ConfigError, Failed, Stopped
from metarun.experiment import Experiment
from metarun.folder import RunFolder
from metarun.logs import Logger, RunLog, log_to, say
from metarun.objectives import HEADLINE, HIGHER_IS_BETTER
from metarun.registry import build
from metarun.report import draw_curves, result_lines, write_scores
from metarun.settings import Settings
from metarun.trainer import NonFiniteLoss, Progress, State, Window, train
from metarun.types import Theta


def prepared(settings: Settings, folder: RunFolder) -> Experiment | None:
    """The components of a run, None where it is finished. Raises ConfigError for all that can be known to fail
    now instead of after the training; writes nothing.
    """
    if folder.result() is not None:
        return None
    experiment = Experiment.of(settings)
    for row in experiment.eval_rows().values():
        for split in ("val", "test"):
            experiment.tester(row, split)
    experiment.optimizer(experiment.initial_theta())
    wanted = settings.eval.checkpoint
    if wanted not in ("best", "last") and not folder.checkpoint(wanted).is_file():
        raise ConfigError(f"eval.checkpoint is {wanted!r}: it must be best, last or a file; there is no such file")
    return experiment


def run(
    settings: Settings,
    folder: RunFolder,
    config: dict[str, Any],
    choices: dict[str, Any],
    experiment: Experiment | None = None,
) -> float:
    """Train, test and report; continue where an earlier sitting stopped. Returns the best validation score.

    `experiment` is what `prepared` returned, if it was called. Raises ConfigError for mistakes of the user's,
    Stopped after a signal, Failed where training diverged.
    """
    experiment = experiment or prepared(settings, folder)
    with folder.alone():
        folder.start(config, choices)
        handler = log_to(folder.path)
        try:
            if (result := folder.result()) is None:
                result = _train_and_test(experiment or Experiment.of(settings), folder, config)
            else:
                say.info("%s is finished already", folder.path)
            for line in result_lines(result):
                say.info(line)
            say.info("in %s: result.json, curves.png, metrics.csv, scores/, checkpoints/", folder.path)
            return float(result["validation"]["best"])
        except (RuntimeError, OSError) as error:
            if shortage := _shortage(error):
                raise Failed(f"{folder.path}: {shortage}; the same command goes on from the last checkpoint") from error
            raise
        finally:
            say.removeHandler(handler)
            handler.close()


def _shortage(error: Exception) -> str | None:
    """What the machine ran out of, in words; None for any other error."""
    if isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error):
        return "out of memory: smaller tasks_per_chunk, of trainer and eval, need less for the same numbers"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return str(error.strerror)
    return None


def _train_and_test(experiment: Experiment, folder: RunFolder, config: dict[str, Any]) -> dict[str, Any]:
    settings = experiment.settings
    about = {
        "config": config,
        "choices": folder.choices(),
        "dataset": experiment.dataset.identity(),
        "device": device_name(experiment.device),
        "versions": versions(),
        "commit": commit(),
    }
    progress = _train(experiment, folder, about)
    tensors, facts = _loaded(experiment, folder.checkpoint(settings.eval.checkpoint))
    result = {
        "test": test(experiment, tensors, folder),
        "checkpoint": {"name": settings.eval.checkpoint, "step": facts["step"]},
        "validation": {"best": facts["validation"], "step": progress.best_step, "tasks": settings.eval.val_tasks},
        "training": {
            "steps": progress.step,
            "seconds": round(progress.seconds, 1),
            "tasks_per_second": round(progress.step * settings.trainer.tasks_per_step / progress.seconds, 1),
            "peak_memory_mib": peak_memory_mib(experiment.device),
        },
        "wall_seconds": round(time.perf_counter() - STARTED, 1),  # of this sitting, with imports and data
        **about,
    }
    folder.finish(result)
    draw_curves(folder.path)
    return result


def _train(experiment: Experiment, folder: RunFolder, about: dict[str, Any]) -> Progress:
    settings = experiment.settings
    state = _restored(experiment, folder)
    progress = state.progress
    headline = HEADLINE[experiment.source.spec.kind]
    sign = 1 if HIGHER_IS_BETTER[headline] else -1
    tester = experiment.tester(experiment.eval_rows()["test"], "val")
    statistics = functools.lru_cache(maxsize=1)(lambda step: experiment.statistics(state.theta))

    def validate() -> tuple[float, dict[str, Any]]:
        summary = tester.scores(state.theta, statistics(progress.step), settings.eval.val_tasks).summary()
        means = {name: value["mean"] for name, value in summary.items()}
        return sign * means[headline], means | {"ci95": summary[headline]["ci95"]}

    def save(name: str) -> None:
        tensors = {
            "theta": state.theta,
            "optimizer": state.optimizer.state_dict(),
            "statistics": statistics(progress.step),
            "window": asdict(state.window),
        }
        validation = None if progress.best is None else sign * progress.best
        facts = {"step": progress.step, "validation": validation, "progress": asdict(progress)}
        checkpoint.save(folder.checkpoint(name), tensors, about | facts)

    logger: Logger = build("logger", settings.logger)
    logger.open(folder.path, about["config"])
    schedule = build("schedule", settings.schedule)
    log = RunLog(folder.path, logger, progress.step)
    try:
        train(
            experiment.algo,
            state,
            experiment.source,
            lambda step: schedule.factor(step, settings.trainer.steps),
            settings.trainer,
            seed=settings.seed,
            device=experiment.device,
            validate=validate,
            save=save,
            log=log,
        )
    except NonFiniteLoss as error:
        kept = f"the last good checkpoint is {folder.last}" if folder.last.exists() else "no checkpoint was written yet"
        raise Failed(f"training diverged: {error}; {kept}; try a smaller rate or trainer.clip_norm") from error
    finally:
        log.close()
    if progress.stopped:
        where = f"stopped by {progress.stopped} at step {progress.step}, saved"
        raise Stopped(f"{where}; continue with: metarun resume {folder.path}")
    return progress


def _restored(experiment: Experiment, folder: RunFolder) -> State:
    """The state that the last checkpoint holds, or a new one."""
    if not folder.last.exists():
        theta = experiment.initial_theta()
        return State(theta, experiment.optimizer(theta))
    tensors, facts = _loaded(experiment, folder.last)
    theta = experiment.trainable(tensors["theta"])
    optimizer = experiment.optimizer(theta)
    optimizer.load_state_dict(tensors["optimizer"])
    state = State(theta, optimizer, Progress(**facts["progress"]), Window(**tensors["window"]))
    if state.progress.step < experiment.settings.trainer.steps:
        say.info("continuing at step %d", state.progress.step)
    return state


def _loaded(experiment: Experiment, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors and facts of a checkpoint. Raises ConfigError where it is of another model."""

    def shapes(theta: Theta) -> dict[str, dict[str, Any]]:
        return {component: {name: p.shape for name, p in params.items()} for component, params in theta.items()}

    tensors, facts = checkpoint.load(path, experiment.device)
    if shapes(tensors["theta"]) != shapes(experiment.algo.init()):
        raise ConfigError(f"the checkpoint {path} is of another model: its weights have other names or shapes")
    return tensors, facts


def test(experiment: Experiment, tensors: dict[str, Any], folder: RunFolder) -> dict[str, Any]:
    """Every row of the result: settings of the test, which tasks, mean and interval of each metric."""
    statistics = tensors["statistics"] or experiment.statistics(tensors["theta"])
    results = {}
    for name, row in experiment.eval_rows().items():
        started = time.perf_counter()
        scores = experiment.tester(row, "test").scores(tensors["theta"], statistics, row.tasks)
        write_scores(folder.path / "scores" / f"{name}.csv", scores)
        results[name] = scores.summary() | {
            "ways": row.ways,
            "shots": row.shots,
            "queries": row.queries,
            "tasks": row.tasks,
            "task_hash": scores.task_hash,
            "algo": row.algo,
            "transductive": experiment.transductive(row),
            "seconds": round(time.perf_counter() - started, 1),
        }
    return results


def retest(settings: Settings, folder: RunFolder, overrides: list[str]) -> None:
    """Test a run's checkpoint as `settings.eval` says; the result goes beside the run's own, under `tests/`."""
    path = folder.checkpoint(settings.eval.checkpoint)
    experiment = Experiment.of(settings)
    for row in experiment.eval_rows().values():
        experiment.tester(row, "test")
    tensors, facts = _loaded(experiment, path)
    beside = RunFolder(folder.path / "tests" / ("-".join(overrides).replace("/", "_") or "again"))
    beside.path.mkdir(parents=True, exist_ok=True)
    result = {
        "checkpoint": {"name": str(path), "step": facts["step"]},
        "test": test(experiment, tensors, beside),
    }
    beside.finish(result)
    print(*result_lines(result), f"in {beside.path}", sep="\n")
