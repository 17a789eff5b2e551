"""A run in its folder: train, test, report; stopped and continued, or tested again."""

import contextlib
import errno
import math
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from metarun.environment import STARTED, commit, device_name, peak_memory_mib, versions
from metarun.errors import ConfigError, Failed, Stopped
from metarun.execution import Execution
from metarun.executor import is_out_of_memory
from metarun.experiment import Experiment
from metarun.folder import RunFolder
from metarun.logs import log_to, say
from metarun.ranks import Ranks, is_lost, together, worker_count
from metarun.report import draw_curves, draw_vectors, result_lines, write_scores
from metarun.settings import Settings
from metarun.training import loaded, trained
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
            trained(experiment, None, {}, ranks)
        test(experiment, *_tested(experiment, None, ranks), None, ranks)


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
    progress = trained(experiment, folder, about, ranks)
    models, facts = _tested(experiment, folder, ranks)
    result = {
        "test": test(experiment, models, facts, folder, ranks),
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
    found = [loaded(experiment, paths[i] if folder else None, ranks) for i in range(count)]
    models, facts = [tensors for tensors, _ in found], found[-1][1]
    return models, facts if count == 1 else {**facts, "step": [facts["step"] for _, facts in found]}


def test(
    experiment: Experiment,
    models: list[dict[str, Any]],
    facts: dict[str, Any],
    folder: RunFolder | None,
    ranks: Ranks,
) -> dict[str, Any]:
    """Every row of the result: settings of the test, which tasks, mean and interval of each metric.

    Tasks are executed as in training. Several models are tested as an ensemble, and its rows say so.
    """
    execution: Execution = facts["progress"]["plan"]["execution"]
    members = [(model["theta"], model["statistics"] or experiment.statistics(model["theta"])) for model in models]
    results = {}
    for name, row in experiment.eval_rows().items():
        started = time.perf_counter()
        scores = experiment.tested(row, members, execution, ranks)
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
            **({"ensemble": len(members)} if len(members) > 1 else {}),
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
            "test": test(experiment, models, facts, beside, ranks),
        }
    beside.finish(result)
    print(*result_lines(result), f"in {beside.path}", sep="\n")
