"""What a person looks at after a run: a few lines, curves, and a table of per-task scores."""

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
from torch import Tensor

from metarun.config.registry import style
from metarun.config.words import count
from metarun.core.files import open_bytes, write_text
from metarun.core.types import Split
from metarun.engine.build import Experiment
from metarun.engine.evaluate import Scores
from metarun.runs.result import BESIDE, Evaluation, Row, describe_mode, describe_place, describe_task

HARDEST = 3  # classes that are named at the end of a run


def describe_start(experiment: Experiment, data: Mapping[str, Any], device: str) -> Iterator[str]:
    """Say what a run is about to do: method, data, tasks, size, machine and length.

    data: the dataset's identity, which may count classes, characters or assays by split.
    """
    settings, dataset = experiment.settings, experiment.settings.dataset
    held = next((f" ({name} {_list_splits(value)})" for name, value in data.items() if _is_by_split(value)), "")
    task = describe_task(experiment.source.spec.kind, settings.ways, settings.shots, settings.queries)
    yield f"{settings.algo['name']} on {dataset.get('collection', dataset['name'])}{held}: {task}"
    weights = sum(p.numel() for part in experiment.draw_theta().values() for p in part.values())
    steps = count(settings.trainer.steps, "step")
    length = f"{steps} of {count(settings.trainer.tasks_per_step, 'task')}" if weights else "nothing to train"
    yield f"{weights:,} weights on {device}, {length}"


def _is_by_split(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(split), int) for split in get_args(Split))


def _list_splits(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{split} {number}" for split, number in numbers.items())


def describe_result(result: Evaluation) -> Iterator[str]:
    """Yield one line for each row of the test: mean, 95 % interval and what the figure means; then what holds for
    other classes, and its vectors. The warnings come last.
    """
    for name, row in result.rows.items():
        headline = row.metrics[result.headline]
        assert isinstance(headline.mean, float)
        assert not isinstance(headline.ci95, list)
        figure = result.metric.shown(headline.mean, headline.ci95)
        task = describe_task(result.kind, row.ways, row.shots, row.queries, row.dirichlet)
        tasks = count(row.tasks, "task")
        about = ", ".join(filter(None, (describe_place(row), task, tasks, describe_mode(row))))
        yield f"{name:20} {result.headline} {figure}  ({about})"
        if name in BESIDE:
            continue
        if beyond := describe_classes(result, row):
            yield f"{'':20} {beyond}"
        if row.at_chance:
            yield f"{'':20} {100 * row.at_chance:.1f} % of the tasks are no better than guessing"
        if name == "test" and row.hardest:
            told = (f"{title} {result.metric.shown(float(share))}" for title, share in row.hardest[:HARDEST])
            yield f"{'':20} least often told: {', '.join(told)}"
        for vector, values in row.metrics.items():
            if isinstance(values.mean, list):
                base, by = split_vector(vector)
                numbers = " ".join(f"{style(base).scale * mean:.{style(base).decimals}f}" for mean in values.mean)
                yield f"{'':20} {base} by {by}: {numbers} {style(base).unit}".rstrip()
    yield from describe_doubt(result)
    yield from (f"warning: {text}" for text in result.warnings)


def describe_doubt(result: Evaluation) -> Iterator[str]:
    """Say how often sets of answers hold the true class, and how well unknown classes are told from known ones."""
    if sets := result.sets:
        held = style("accuracy").shown(sets.coverage, sets.ci95)
        over = "" if sets.ci95_over_classes is None else f", ± {100 * sets.ci95_over_classes:.2f} over classes"
        size = f"{sets.size:.2f} classes each"
        yield f"{'sets of answers':20} meant to hold the class in 90 %, hold it in {held}{over}; {size}"
    if unknown := result.unknown:
        half = "" if unknown.ci95 is None else f" ± {unknown.ci95:.4f}"
        more = count(unknown.classes, "unknown class")
        yield f"{'unknown classes':20} AUROC {unknown.auroc:.4f}{half} of the largest score, with {more} in a task"


def describe_classes(result: Evaluation, row: Row) -> str:
    """Say what holds if other classes, or assays, are drawn; empty where tasks share none, or there is no interval."""
    number, noun = row.count_pool(result.kind)
    interval = row.metrics[result.headline].ci95
    if number is None or not isinstance(interval, float) or not math.isfinite(interval):
        return ""
    pool = count(number, noun)
    if row.ci95_over_classes is not None:
        half = result.metric.shown(row.ci95_over_classes)
        return f"± {half} over the draw of the {pool}; the ± above is over tasks of these alone"
    if number == row.ways:
        return f"all tasks are of the same {pool}: ± covers the draw of the examples alone"
    return f"the tasks are of {pool}, too few to tell what ± is over the draw of them"


def split_vector(name: str) -> tuple[str, str]:
    """Split the name of a vector metric: "accuracy_by_step" -> "accuracy", "step"."""
    base, _, by = name.partition("_by_")
    return base, by


def write_scores(path: Path, scores: Scores, classes: Tensor | None = None) -> None:
    """Write one line per task and a column per metric; each entry of a vector metric has a column of its own.

    classes: [tasks, N], the class of each label: `class_0`, `class_1`, ...; [tasks, 1], a task's assay: `class`.
    """
    path.parent.mkdir(exist_ok=True)
    columns = {
        name if values.dim() == 1 else f"{name}_{i}": column.tolist()
        for name, values in scores.metrics.items()
        for i, column in enumerate(values.flatten(1).T if values.dim() > 1 else [values])
    }
    if classes is not None:
        names = [f"class_{label}" for label in range(classes.shape[1])] if classes.shape[1] > 1 else ["class"]
        columns |= dict(zip(names, classes.T.tolist()))
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(["task", *columns])
    writer.writerows((i, *row) for i, row in enumerate(zip(*columns.values())))
    write_text(path, table.getvalue())


def draw_vectors(folder: Path, rows: Mapping[str, Row]) -> None:
    """Draw `accuracy_by_step.png` and the like: mean and 95 % interval of each vector metric."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = {name for row in rows.values() for name, values in row.metrics.items() if isinstance(values.mean, list)}
    for name in names:
        base, by = split_vector(name)
        figure = Figure(figsize=(5, 4), layout="constrained")
        axis = figure.subplots()
        for row, values in ((title, row.metrics[name]) for title, row in rows.items() if name in row.metrics):
            assert isinstance(values.mean, list)
            assert not isinstance(values.ci95, float)
            mean, ci95 = ([style(base).scale * x for x in numbers] for numbers in (values.mean, values.ci95 or ()))
            places = [i + (by == "instance") for i in range(len(mean))]  # instances are counted from 1
            axis.errorbar(places, mean, ci95 or None, marker="o", markersize=3, capsize=2, label=row)
        axis.set(xlabel=by, ylabel=label(base), yscale=style(base).axis)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
        with open_bytes(folder / f"{name}.png") as content:
            figure.savefig(content, dpi=120)


def draw_regret(folder: Path, rows: Mapping[str, Row], best: str) -> None:
    """Draw `regret.png`, where returns were measured by episode: how much less than the row `best` each other has
    earned up to an episode.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    returns = {name: row.metrics["return_by_episode"].mean for name, row in rows.items() if is_by_episode(row)}
    if best not in returns or "test" not in returns:
        return
    figure = Figure(figsize=(5, 4), layout="constrained")
    axis = figure.subplots()
    for name, earned in returns.items():
        if name != best:
            regret = np.cumsum(np.subtract(returns[best], earned))
            axis.plot(range(1, len(regret) + 1), regret, marker="o", markersize=3, label=name)
    axis.set(xlabel="episode", ylabel=f"regret, against {best}")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()
    with open_bytes(folder / "regret.png") as content:
        figure.savefig(content, dpi=120)


def is_by_episode(row: Row) -> bool:
    return "return_by_episode" in row.metrics


def draw_curves(folder: Path, headline: str) -> None:
    """Draw `curves.png` from `metrics.jsonl`: the loss, and the headline metric in training and validation."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    looks: tuple[tuple[str, dict[str, Any]], ...] = (
        ("train", {"alpha": 0.8}),
        ("val", {"marker": "o", "markersize": 3}),
    )
    shown = (
        ("loss", "loss", 1.0, "linear"),
        (headline, label(headline), style(headline).scale, style(headline).axis),
    )
    for axis, (name, title, scale, yscale) in zip(axes, shown):
        for split, look in looks:
            there = (row for row in rows if row["split"] == split and row.get(name) is not None)
            points = [(row["step"], scale * row[name]) for row in there]
            if points:
                axis.plot(*zip(*points), label=split, **look)
        axis.set(xlabel="step", ylabel=title, yscale=yscale)
        axis.grid(alpha=0.3)
        if axis.lines:
            axis.legend()
    with open_bytes(folder / "curves.png") as content:
        figure.savefig(content, dpi=120)


def label(name: str) -> str:
    """Name a metric with its unit: "accuracy, %"."""
    return ", ".join(filter(None, (name, style(name).unit)))
