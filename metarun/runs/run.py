"""A run in its folder: train, test, report; stopped and continued, or tested again."""

import errno
import math
import time
from typing import Any

from metarun.config.errors import ConfigError, Failed
from metarun.config.registry import lookup
from metarun.config.schema import Settings
from metarun.core.machine import STARTED, commit, device_name, peak_memory_mib, versions
from metarun.engine.build import Experiment
from metarun.engine.distributed import Ranks, is_lost, worker_count
from metarun.engine.plan import is_out_of_memory
from metarun.engine.process import launched
from metarun.runs.artifacts import draw_curves, result_lines
from metarun.runs.folder import RunFolder
from metarun.runs.log import log_to, say
from metarun.runs.result import _check_ensemble, _tested, test
from metarun.runs.session import trained
from metarun.runs.worker import follow, ranks_of


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
            with ranks_of(experiment, config, "train") as ranks:
                follow(settings, ranks, "train")
        return math.nan
    with folder.alone(), folder.start(config, choices):
        handler = log_to(folder.path)
        try:
            if (result := folder.result()) is None:
                experiment = experiment or Experiment.of(settings)
                with ranks_of(experiment, config, "train") as ranks:
                    result = _train_and_test(experiment, folder, config, ranks)
            else:
                say.info("%s is finished already", folder.path)
            for line in result_lines(result):
                say.info(line)
            places = ["result.json", "curves.png", "metrics.csv", "scores/", "checkpoints/"]
            say.info("in %s: %s", folder.path, ", ".join(places + lookup("logger", settings.logger["name"]).places))
            return float(result["validation"]["best"])
        except (RuntimeError, OSError) as error:
            if reason := _reason(error):
                raise Failed(f"{folder.path}: {reason}; the same command goes on from the last checkpoint") from error
            raise
        finally:
            say.removeHandler(handler)
            handler.close()


def _reason(error: Exception) -> str | None:
    """What the machine ran out of, or who left, in words; None for any other error."""
    if is_out_of_memory(error):
        return "out of memory: smaller tasks_per_chunk, of trainer and eval, need less for the same numbers"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return str(error.strerror)
    if is_lost(error):
        return "another of this run's processes ended before its time"
    return None


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


def retest(settings: Settings, folder: RunFolder, config: dict[str, Any], overrides: list[str]) -> None:
    """Test a run's checkpoint as `settings.eval` says; the result goes beside the run's own, under `tests/`."""
    experiment = Experiment.of(settings)
    _check_ensemble(experiment)
    for row in experiment.eval_rows().values():
        experiment.tester(row, "test")
    if launched():
        with ranks_of(experiment, config, "test") as ranks:
            follow(settings, ranks, "test")
        return
    beside = RunFolder(folder.path / "tests" / ("-".join(overrides).replace("/", "_") or "again"))
    with ranks_of(experiment, config, "test") as ranks:
        models, facts = _tested(experiment, folder, ranks)
        beside.path.mkdir(parents=True, exist_ok=True)
        result = {
            "checkpoint": {"name": str(folder.checkpoint(settings.eval.checkpoint)), "step": facts["step"]},
            "test": test(experiment, models, facts, beside, ranks),
        }
    beside.finish(result)
    print(*result_lines(result), f"in {beside.path}", sep="\n")
