"""The test of what was trained: the models, the rows, and what is beside them."""

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import declaration, metric
from metarun.config.schema import EvalSettings
from metarun.config.words import count
from metarun.core.objectives import ANSWERS, KEPT, ONE_BY_ONE, headline_metric
from metarun.core.statistics import Estimate, over_classes, over_tasks
from metarun.engine.baselines import Baselines, list_baselines
from metarun.engine.build import Experiment
from metarun.engine.calibration import (
    Answers,
    collect_answers,
    fit_temperature,
    fit_threshold,
    measure_sets,
    measure_unknown,
    open_tasks,
    read_answers,
)
from metarun.engine.distributed import Ranks
from metarun.engine.evaluate import NOTHING, Model, Scores, Tester, forget, is_transductive
from metarun.engine.plan import Plan
from metarun.runs.artifacts import draw_regret, draw_vectors, write_scores
from metarun.runs.classes import Pairs
from metarun.runs.draft import Draft, make_key
from metarun.runs.folder import RunFolder
from metarun.runs.log import say
from metarun.runs.result import BASELINES, UNTRAINED, Doubt, Row, Sets, Unknown
from metarun.runs.session import load_checkpoint
from metarun.runs.warnings import ROUNDING

FEW_TASKS = 100  # that untrained weights and baselines are tested on


def load_models(
    experiment: Experiment, folder: RunFolder | None, ranks: Ranks
) -> tuple[list[Model], list[dict[str, Any]]]:
    """Return the model that `eval.checkpoint` names, or each of an ensemble, and the facts of their checkpoints.

    Raises ConfigError.
    """
    name = experiment.settings.eval.checkpoint
    paths: list[Path] = []
    if folder:
        paths = folder.leaders() if name == "ensemble" else [folder.checkpoint(name)]
    count = ranks.broadcast(len(paths))
    if count == 0:
        raise ConfigError("eval.checkpoint is ensemble: there are no checkpoints best-STEP.pt")
    models, facts = [], []
    for i in range(count):
        tensors, about = load_checkpoint(experiment, paths[i] if folder else None, ranks)
        known = "variance" in tensors["statistics"]  # what checkpoints of earlier versions, and of other tests, lack
        measured = {} if known else experiment.measure_statistics(tensors["theta"])
        models.append(Model(tensors["theta"], {**measured, **tensors["statistics"]}))
        facts.append(about)
    return models, facts


def check_ensemble(experiment: Experiment) -> None:
    """Raise ConfigError if an ensemble is asked for and cannot be."""
    settings = experiment.settings
    if settings.eval.checkpoint != "ensemble":
        return
    if settings.trainer.keep_best == 1:
        raise ConfigError("eval.checkpoint is ensemble: trainer.keep_best is 1, and must be at least 2 in training")
    if experiment.source.spec.kind != "classification":
        raise ConfigError("eval.checkpoint is ensemble: it averages class probabilities, and this is regression")


def measure_classes(scores: Scores, classes: Tensor | None, headline: str) -> dict[str, Any]:
    """Return how many classes or assays the tasks have, and the interval over the draw of these."""
    if classes is None:
        return {}
    found = over_classes(scores.per_task[headline].double().numpy(), classes.numpy())
    return {"classes" if classes.shape[1] > 1 else "assays": len(classes.unique()), "ci95_over_classes": found}


def measure_chance(scores: Scores, headline: str, ways: int) -> float | None:
    """The share of tasks whose figure is no better than guessing; None if there is no such figure."""
    guessed = metric(headline).guessed(ways)
    if guessed is None:
        return None
    return float((scores.per_task[headline].double() <= guessed + ROUNDING).double().mean())


def count_pairs(scores: Scores, classes: Tensor | None) -> Pairs | None:
    """Which classes were taken for which; None where tasks have none in common."""
    answers = scores.per_task.get(ANSWERS)
    if answers is None or classes is None or classes.shape != answers.shape[:2]:
        return None
    return Pairs.count(answers.double().numpy(), classes.numpy())


def plan_tests(experiment: Experiment, models: list[Model]) -> Iterator[tuple[str, Tester, list[Model]]]:
    """Yield each row's name, what tests it, and the models. The last rows have the weights that no training has
    changed, unless the method has none, and the baselines of the data.
    """
    rows, theta = experiment.plan_rows(), experiment.draw_theta()
    for name, row in rows.items():
        yield name, experiment.build_tester(row, "test"), models
    few = replace(rows["test"], tasks=min(rows["test"].tasks, FEW_TASKS))
    if any(theta.values()):
        yield UNTRAINED, experiment.build_tester(few, "test"), [Model(theta, experiment.measure_statistics(theta))]
    baselines = Baselines(experiment, few)
    for name in list_baselines(experiment, few):
        try:
            yield name, baselines.build_tester(name), [Model({}, {})]
        except ConfigError as reason:
            say.info("no row %s: %s", name, reason)


def score_models(
    experiment: Experiment, models: list[Model], plan: Plan, folder: RunFolder | None, ranks: Ranks
) -> tuple[dict[str, Row], Doubt]:
    """Test the models on every row of the result, and measure what their scores are worth."""
    rows, answers = score_rows(experiment, models, plan, folder, ranks)
    return rows, measure_doubt(experiment, models, plan, ranks, answers)


def score_rows(
    experiment: Experiment, models: list[Model], plan: Plan, folder: RunFolder | None, ranks: Ranks
) -> tuple[dict[str, Row], Answers | None]:
    """Test the models on every row of the result; untrained weights and baselines on some tasks of the first. Returns
    the rows, and a single model's answers to the tasks that `measure_doubt` looks at, as far as its method gives them.

    Writes the scores into the folder, if there is one. Tasks are executed as in training. Several models are tested as
    an ensemble, and its rows say so. An inductive row that differs from another in how queries are read alone is
    measured with it, after the same adaptation, and has no `seconds` of its own.
    """
    rows, measured, answers = {}, dict[str, Scores](), None
    planned, (doubted, looked_at) = experiment.plan_rows(), plan_doubt(experiment)
    for name, tester, members in plan_tests(experiment, models):
        row, inductive = tester.row, f"{name}_inductive"
        scores, seconds = measured.get(name, NOTHING), None
        if not scores.tasks:
            twice = inductive in planned and planned[inductive].algo == {**row.algo, "norm": "per_query"}
            kept = looked_at.tasks if len(models) == 1 and doubted in (name, inductive if twice else name) else 0
            both, seconds = score_row(experiment, tester, name, members, plan, folder, ranks, twice, kept)
            scores, measured[inductive] = both.part(ONE_BY_ONE, False), both.part(ONE_BY_ONE, True)
        if name == doubted:
            answers = read_answers(scores, looked_at.tasks)
        scores = scores.part(KEPT, False)
        pairs = count_pairs(scores, classes := tester.draw_classes(row.tasks))
        if folder:
            write_scores(folder.path / "scores" / f"{name}.csv", scores, classes)
        if folder and pairs:
            pairs.write(folder.path / "scores" / f"{name}_classes.csv", tester.names)
        facts = {
            "transductive": is_transductive(row, experiment.has_norm),
            "ensemble": len(members),
            "seconds": seconds,
        }
        rows[name] = describe_row(tester, scores, classes, pairs, **facts)
    if folder:
        draw_vectors(folder.path / "scores", rows)
        for best in declaration("dataset", experiment.settings.dataset["name"]).traits.rules[:1]:
            draw_regret(folder.path / "scores", rows, best)
    return rows, answers


def score_row(
    experiment: Experiment,
    tester: Tester,
    name: str,
    models: list[Model],
    plan: Plan,
    folder: RunFolder | None,
    ranks: Ranks,
    twice: bool,
    answers: int,
) -> tuple[Scores, float]:
    """Return the scores of a row and the seconds they took. A test that was stopped goes on after the tasks that its
    draft holds.
    """
    key = make_key(tester, models, plan, experiment.device, twice, answers)
    draft = Draft(folder.draft(name), key) if folder else None
    done, before = ranks.broadcast(draft.read() if draft else (NOTHING, 0.0))
    started = time.perf_counter() - before
    if folder:
        tested = f"{name} and {name}_inductive" if twice else name
        say.info("testing %s: %s", tested, count(tester.row.tasks, "task"))
    keep = draft.follow(started) if draft else forget
    execution = "loop" if name in BASELINES else plan.execution  # a forest is grown outside of PyTorch
    scores = tester.score(models, tester.row.tasks, execution, ranks, done, keep, twice, answers)
    return scores, round(time.perf_counter() - started, 1)


def describe_row(tester: Tester, scores: Scores, classes: Tensor | None, pairs: Pairs | None, **facts: Any) -> Row:
    """Return what the scores say, beside the settings of the row and further facts about it."""
    row, headline = tester.row, headline_metric(tester.source.spec)
    hardest, confused = pairs.list_hardest(tester.names) if pairs else ([], [])
    return Row(
        metrics={metric: Estimate(**values) for metric, values in scores.summarise().items()},
        ways=row.ways,
        shots=row.shots,
        queries=row.queries,
        tasks=scores.tasks,
        task_hash=scores.task_hash,
        algo=row.algo,
        **facts,
        **measure_classes(scores, classes, headline),
        at_chance=measure_chance(scores, headline, row.ways),
        hardest=hardest,
        confused=confused,
        dataset=row.dataset,
        split=row.split,
        dirichlet=row.dirichlet,
        data=tester.dataset.identity() if row.dataset else None,
    )


def plan_doubt(experiment: Experiment) -> tuple[str, EvalSettings]:
    """The row that predicts as `metarun predict` does, with as many tasks as validation has, if there are."""
    rows = experiment.plan_rows()
    name = "test_inductive" if "test_inductive" in rows else "test"
    return name, replace(rows[name], tasks=min(rows[name].tasks, experiment.settings.eval.val_tasks))


def measure_doubt(
    experiment: Experiment, models: list[Model], plan: Plan, ranks: Ranks, answers: Answers | None
) -> Doubt:
    """Measure what a single model's scores are worth, as `metarun predict` adapts it: fit a temperature and sets of
    answers on the validation tasks, and look at both, and at queries of unknown classes, on as many test tasks.

    answers: to the test tasks, from the test itself; where it has not kept them, they are asked for again.
    """
    _, row = plan_doubt(experiment)
    try:
        validation = experiment.build_tester(replace(row, tasks=experiment.settings.eval.val_tasks), "val")
    except ConfigError as reason:  # for example more ways, in a later test, than there are validation classes
        say.info("no sets of answers: %s", reason)
        return Doubt()
    fitted = collect_answers(validation, models, plan.execution, ranks)
    temperature = fitted and fit_temperature(fitted)
    if fitted is None or temperature is None:
        return Doubt()
    tester = experiment.build_tester(row, "test")
    sets = unknown = None
    if answers := answers or collect_answers(tester, models, plan.execution, ranks):
        threshold, classes = fit_threshold(fitted, temperature), tester.draw_classes(row.tasks)
        held, size = measure_sets(answers, temperature, threshold)
        over = None if classes is None else over_classes(held.numpy(), classes[: len(held)].numpy())
        sets = Sets(threshold, *estimate(held), over, float(size.mean()), len(held))
    if (opened := open_tasks(tester)) and (answers := collect_answers(opened, models, plan.execution, ranks)):
        found, more = measure_unknown(answers), len(answers.y[0].unique()) - row.ways
        unknown = Unknown(*estimate(found), more, len(found))
    return Doubt(temperature, sets, unknown)


def estimate(scores: Tensor) -> tuple[float, float | None]:
    """The mean over tasks [T], and half its interval."""
    half = over_tasks(scores.numpy())
    return float(scores.mean()), None if half is None else float(half)
