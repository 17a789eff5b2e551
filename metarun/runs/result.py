"""The test of a run: models loaded, rows tested, scores written."""

import time
from pathlib import Path
from typing import Any

from metarun.config.errors import ConfigError
from metarun.core.batch import Execution
from metarun.engine.build import Experiment
from metarun.engine.distributed import Ranks
from metarun.runs.artifacts import draw_vectors, write_scores
from metarun.runs.folder import RunFolder
from metarun.runs.session import loaded


def _check_ensemble(experiment: Experiment) -> None:
    """Raises ConfigError where one is asked for and cannot be."""
    settings = experiment.settings
    if settings.eval.checkpoint != "ensemble":
        return
    if settings.trainer.keep_best == 1:
        raise ConfigError("eval.checkpoint is ensemble: trainer.keep_best is 1, and must be at least 2 in training")
    if experiment.source.spec.kind != "classification":
        raise ConfigError("eval.checkpoint is ensemble: it averages class probabilities, and this is regression")


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
