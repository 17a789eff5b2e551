"""A run in its folder: train, test, report; stopped and continued, or tested again."""

import contextlib
import errno
import functools
import math
import time
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_map

from metarun import checkpoint
from metarun.datasets.ahead import Ahead, is_elsewhere
from metarun.environment import STARTED, commit, device_name, peak_memory_mib, versions
from metarun.errors import ConfigError, Failed, Stopped
from metarun.execution import Execution
from metarun.executor import Executor, is_out_of_memory
from metarun.experiment import Experiment
from metarun.folder import RunFolder
from metarun.logs import Log, Logger, RunLog, Silence, log_to, say
from metarun.objectives import METRICS, metric_of
from metarun.ranks import Ranks, is_lost, together, worker_count
from metarun.registry import build
from metarun.report import draw_curves, draw_vectors, result_lines, write_scores
from metarun.seeding import generator_for
from metarun.settings import Settings
from metarun.trainer import NonFiniteLoss, Progress, State, Window, train
from metarun.types import Episode, Theta
from metarun.workers import launched


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
    worker_count(settings.trainer.workers, settings.trainer.tasks_per_step, experiment.device)
    wanted = settings.eval.checkpoint
    _check_ensemble(experiment)
    if wanted not in ("best", "last", "ensemble") and not folder.checkpoint(wanted).is_file():
        raise ConfigError(
            f"eval.checkpoint is {wanted!r}: it must be best, last, ensemble or a file; there is no such file"
        )
    return experiment


def _check_ensemble(experiment: Experiment) -> None:
    """Raises ConfigError where one is asked for and cannot be."""
    settings = experiment.settings
    if settings.eval.checkpoint != "ensemble":
        return
    if settings.trainer.keep_best == 1:
        raise ConfigError("eval.checkpoint is ensemble: trainer.keep_best is 1, and must be at least 2 in training")
    if experiment.source.spec.kind != "classification":
        raise ConfigError("eval.checkpoint is ensemble: it averages class probabilities, and this is regression")


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
    if launched():
        if experiment is not None:
            with _ranks(experiment, config, "train") as ranks:
                follow(settings, ranks, "train")
        return math.nan
    with folder.alone():
        folder.start(config, choices)
        handler = log_to(folder.path)
        try:
            if (result := folder.result()) is None:
                experiment = experiment or Experiment.of(settings)
                with _ranks(experiment, config, "train") as ranks:
                    result = _train_and_test(experiment, folder, config, ranks)
            else:
                say.info("%s is finished already", folder.path)
            for line in result_lines(result):
                say.info(line)
            say.info("in %s: result.json, curves.png, metrics.csv, scores/, checkpoints/", folder.path)
            return float(result["validation"]["best"])
        except (RuntimeError, OSError) as error:
            if reason := _explained(error):
                raise Failed(f"{folder.path}: {reason}; the same command goes on from the last checkpoint") from error
            raise
        finally:
            say.removeHandler(handler)
            handler.close()


def _explained(error: Exception) -> str | None:
    """What the machine ran out of, or who left, in words; None for any other error."""
    if is_out_of_memory(error):
        return "out of memory: smaller tasks_per_chunk, of trainer and eval, need less for the same numbers"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return str(error.strerror)
    if is_lost(error):
        return "another of this run's processes ended before its time"
    return None


def _ranks(experiment: Experiment, config: dict[str, Any], job: str) -> AbstractContextManager[Ranks]:
    trainer, device = experiment.settings.trainer, experiment.device
    return together(worker_count(trainer.workers, trainer.tasks_per_step, device), config, job, device)


def follow(settings: Settings, ranks: Ranks, job: str) -> None:
    """What every rank but the first does of `run` ("train") and of `retest` ("test"): its share, in silence."""
    experiment = Experiment.of(settings)
    with contextlib.suppress(Failed, Stopped):  # rank 0 tells
        if job == "train":
            _train(experiment, None, {}, ranks)
        models, _ = _tested(experiment, None, ranks)
        test(experiment, models, None, ranks)


def _train_and_test(experiment: Experiment, folder: RunFolder, config: dict[str, Any], ranks: Ranks) -> dict[str, Any]:
    settings = experiment.settings
    about = {
        "config": config,
        "choices": folder.choices(),
        "dataset": experiment.dataset.identity(),
        "device": device_name(experiment.device),
        "versions": versions(),
        "commit": commit(),
    }
    progress = _train(experiment, folder, about, ranks)
    models, facts = _tested(experiment, folder, ranks)
    result = {
        "test": test(experiment, models, folder, ranks),
        "checkpoint": {"name": settings.eval.checkpoint, "step": facts["step"]},
        "validation": {"best": facts["validation"], "step": progress.best_step, "tasks": settings.eval.val_tasks},
        "training": {
            "steps": progress.step,
            "seconds": round(progress.seconds, 1),
            "tasks_per_second": round(progress.step * settings.trainer.tasks_per_step / progress.seconds, 1),
            "peak_memory_mib": peak_memory_mib(experiment.device),  # of the first process
            "workers": ranks.count,
            "plan": progress.plan,
        },
        "wall_seconds": round(time.perf_counter() - STARTED, 1),  # of this sitting, with imports and data
        **about,
    }
    folder.finish(result)
    draw_curves(folder.path)
    return result


def _train(experiment: Experiment, folder: RunFolder | None, about: dict[str, Any], ranks: Ranks) -> Progress:
    """Train from the last checkpoint on, as rank 0 with the run's folder, or without one as another."""
    settings, trainer = experiment.settings, experiment.settings.trainer
    state = _restored(experiment, folder, ranks)
    progress = state.progress
    headline = metric_of(experiment.source.spec)
    sign = 1 if METRICS[headline].higher_is_better else -1
    tester = experiment.tester(experiment.eval_rows()["test"], "val")
    statistics = functools.lru_cache(maxsize=1)(lambda step: experiment.statistics(state.theta))
    executor = Executor(experiment.algo, trainer, ranks)

    def drawn(step: int) -> Episode:
        generator = generator_for(settings.seed, "train", step, device=experiment.device)
        return experiment.source.sample(trainer.tasks_per_step, generator)

    elsewhere = is_elsewhere(experiment.source, experiment.device)
    tasks_of = Ahead(drawn, experiment.device) if elsewhere else drawn

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
            experiment.algo,
            state,
            tasks_of,
            executor,
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
    tensors, facts = _loaded(experiment, folder.last if folder else None, ranks)
    theta = experiment.trainable(tensors["theta"])
    optimizer = experiment.optimizer(theta)
    optimizer.load_state_dict(tensors["optimizer"])
    state = State(theta, optimizer, Progress(**facts["progress"]), Window(**tensors["window"]))
    if state.progress.step < experiment.settings.trainer.steps:
        say.info("continuing at step %d", state.progress.step)
    return state


def _loaded(experiment: Experiment, path: Path | None, ranks: Ranks) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors, on the device, and facts of a checkpoint that rank 0 reads.

    Raises ConfigError where it is of another model.
    """

    def shapes(theta: Theta) -> dict[str, dict[str, Any]]:
        return {component: {name: p.shape for name, p in params.items()} for component, params in theta.items()}

    tensors, facts = ranks.agreed(checkpoint.load(path) if path else ({}, {}))
    if shapes(tensors["theta"]) != shapes(experiment.algo.init()):
        raise ConfigError(f"the checkpoint {path} is of another model: its weights have other names or shapes")
    return tree_map(lambda value: value.to(experiment.device) if isinstance(value, Tensor) else value, tensors), facts


def _tested(
    experiment: Experiment, folder: RunFolder | None, ranks: Ranks
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Tensors of the checkpoint that is to be tested, or of each of an ensemble's; facts, of all the steps.

    Raises ConfigError.
    """
    name = experiment.settings.eval.checkpoint
    paths: list[Path] = []
    if folder:
        paths = folder.leaders() if name == "ensemble" else [folder.checkpoint(name)]
    count = ranks.agreed(len(paths))
    if count == 0:
        raise ConfigError("eval.checkpoint is ensemble: there are no checkpoints best-STEP.pt")
    loaded = [_loaded(experiment, paths[i] if folder else None, ranks) for i in range(count)]
    models, facts = [tensors for tensors, _ in loaded], loaded[-1][1]
    return models, facts if count == 1 else {**facts, "step": [found["step"] for _, found in loaded]}


def test(
    experiment: Experiment, models: list[dict[str, Any]], folder: RunFolder | None, ranks: Ranks
) -> dict[str, Any]:
    """Every row of the result: settings of the test, which tasks, mean and interval of each metric.

    Several models are tested as an ensemble, and its rows say so.
    """
    execution: Execution = "loop" if experiment.settings.trainer.execution == "loop" else "vmap"
    trained = [(model["theta"], model["statistics"] or experiment.statistics(model["theta"])) for model in models]
    results = {}
    for name, row in experiment.eval_rows().items():
        started = time.perf_counter()
        scores = experiment.tested(row, trained, execution, ranks)
        if folder:
            write_scores(folder.path / "scores" / f"{name}.csv", scores)
        results[name] = scores.summary() | {
            "ways": row.ways,
            "shots": row.shots,
            "queries": row.queries,
            "tasks": scores.tasks,
            "task_hash": scores.task_hash,
            "algo": row.algo,
            "transductive": experiment.transductive(row),
            **({"ensemble": len(trained)} if len(trained) > 1 else {}),
            "seconds": round(time.perf_counter() - started, 1),
        }
    if folder:
        draw_vectors(folder.path / "scores", results)
    return results


def retest(settings: Settings, folder: RunFolder, config: dict[str, Any], overrides: list[str]) -> None:
    """Test a run's checkpoint as `settings.eval` says; the result goes beside the run's own, under `tests/`."""
    experiment = Experiment.of(settings)
    _check_ensemble(experiment)
    for row in experiment.eval_rows().values():
        experiment.tester(row, "test")
    if launched():
        with _ranks(experiment, config, "test") as ranks:
            follow(settings, ranks, "test")
        return
    beside = RunFolder(folder.path / "tests" / ("-".join(overrides).replace("/", "_") or "again"))
    with _ranks(experiment, config, "test") as ranks:
        models, facts = _tested(experiment, folder, ranks)
        beside.path.mkdir(parents=True, exist_ok=True)
        result = {
            "checkpoint": {"name": str(folder.checkpoint(settings.eval.checkpoint)), "step": facts["step"]},
            "test": test(experiment, models, beside, ranks),
        }
    beside.finish(result)
    print(*result_lines(result), f"in {beside.path}", sep="\n")
