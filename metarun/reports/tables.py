"""The content of a report as tables of text. `text` and `web` write them as Markdown, CSV, LaTeX and HTML."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from metarun.config.registry import metric
from metarun.config.traits import Metric
from metarun.config.words import count, format_duration
from metarun.reports.collect import Cell, Run, find_differences, make_cells
from metarun.reports.papers import cite, tabulate_papers
from metarun.reports.published import find_entries, read_figures
from metarun.reports.robustness import group_runs, has_probes, list_calibration, rank_methods
from metarun.reports.statistics import Comparison, compare, mean_ranks

HEADER = (
    "experiment", "row", "dataset", "task", "result", "over classes", "over seeds", "published", "difference",
    "verdict", "mode", "test tasks", "checkpoint", "training", "tasks/s", "memory", "device", "seeds", "commit",
)  # fmt: skip
ENCODED = (
    "experiment", "row", "dataset", "task", "result", "over classes", "mode", "classes seen in pre-training",
)  # fmt: skip
CLASS_HEADER = ("experiment", "row", "dataset", "tasks at chance", "least often told", "most often taken")
DOUBT_HEADER = (
    "experiment", "seed", "dataset", "sets meant to hold the class in 90 % hold it in", "over classes",
    "classes in a set", "AUROC of unknown classes", "unknown classes in a task",
)  # fmt: skip
ROWS = {
    "test": "the run's own test; an experiment tests as the method's paper does",
    "20way": "the same model on tasks of 20 classes",
    "untrained": "the same network and method with the weights from which training began, on some of the tasks",
    "pixels": "the nearest class mean of the pixels, without training, on some of the tasks",
    "tf_idf": "the nearest class mean of TF-IDF vectors, with the training texts' weights, on some of the tasks",
    "tanimoto": "the most similar molecules by Morgan fingerprints, without training, on some of the tasks",
    "forest": "a random forest on Morgan fingerprints, without meta-training, on some of the tasks",
    "queries15": "the same model with 15 queries per class, all predicted in one batch",
    "_inductive": "the same model and tasks, but each query is predicted without sight of the other queries",
}
VECTORS = {  # name of a vector metric, after "_by_" -> heading of its numbers, the first number
    "step": ("inner steps", 0),
    "instance": ("instance", 1),
}
READING = """\
A result is the mean over the test tasks, ± 1.96 standard deviations / sqrt(tasks). This interval covers the choice of
tasks, not that of the test classes or of the training seed. *Over classes* is half a 95 % interval over the draw of the
test classes (or assays), by the jackknife of U-statistics: the one to quote for other classes. It is unknown where all
tasks have the same classes. *Over seeds* is half a 95 % interval over training seeds, by Student's t, where there are
several seeds. ‡ marks a result with a warning. Runs with the same dataset and kind of task are tested on the same
tasks, whatever the method and seed.
The checkpoint is the one with the best validation score, unless a command sets `eval.checkpoint`. *Transductive*
results normalise by the statistics of a batch that holds all queries of a task; *inductive* results do not. A result
without the name of a metric is an accuracy.

*Reproduced* means that the result differs from the published figure by at most the tolerance ({tolerances})
or, if that is more, both intervals together, of which ours counts up to the tolerance. A verdict needs 600 test tasks.
*Too short* stands for *below* or *worse* where the training took less than half of the paper's steps.
Published figures stand beside rows of their own mode. † marks a run that differs from what is known of the paper's
protocol; a note names each difference, and the sources what is not known. In the papers' tables the published figure is
in brackets.

Methods are compared on the same test tasks: up to eight methods in all pairs, more than eight each with the one of the
best mean rank. The difference is positive if the first is better, with a paired 95 % interval. The p of the mean is the
paired t-test's. The p of the ranks is by Wilcoxon's signed-rank test with ties as in Pratt, corrected by Holm's method
over all pairs of the table; where differences are skewed it may reject although the means are equal."""


class Table(NamedTuple):
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Section(NamedTuple):
    title: str
    tables: list[Table]


@dataclass(frozen=True)
class Report:
    """The parts of a report. Each is made once, whatever the number of formats."""

    runs: list[Run]
    skipped: Sequence[str] = ()  # runs that could not be read, with the reason

    @cached_property
    def cells(self) -> list[Cell]:
        return list(make_cells(self.runs))

    @cached_property
    def datasets(self) -> list[str]:
        return list(dict.fromkeys(cell.first.dataset for cell in self.cells))

    @cached_property
    def overview(self) -> Table:
        return Table(HEADER, [_make_line(cell) for cell in self.cells if cell.first.encoder is None])

    @cached_property
    def encoded(self) -> list[Section]:
        """The results with an encoder, which has learned from other data, and may have seen the test classes there."""
        lines = [
            (
                cell.name,
                cell.row,
                cell.dataset,
                cell.task,
                cell.score,
                _format_classes(cell),
                cell.mode,
                _tell_seen(cell),
            )
            for cell in self.cells
            if cell.first.encoder is not None
        ]
        return [Section("Results with an encoder", [Table(ENCODED, lines)])] if lines else []

    @cached_property
    def papers(self) -> list[Section]:
        """The papers' tables for the datasets of the runs: our result beside each figure, or "no run"."""
        tables = tabulate_papers(self.datasets, self.cells)
        return [Section(title, [Table(header, lines)]) for title, header, lines in tables]

    @cached_property
    def steps(self) -> list[Section]:
        """Metrics with several values per task: after each inner step, or at each instance of a class."""
        trained = (cell for cell in self.cells if not cell.is_beside)
        return [_make_vector_table(cell, by) for cell in trained for by in cell.vectors if by in VECTORS]

    @cached_property
    def differing(self) -> list[Section]:
        """For each dataset a line per setting, with the values that are not the same in all."""
        return list(_make_difference_tables(self.cells))

    @cached_property
    def comparisons(self) -> list[Section]:
        """For each group of methods on the same tasks: mean ranks, and pairs in the order of rank."""
        return [_compare_group(group) for group in _group_comparable(self.cells)]

    @cached_property
    def hardest(self) -> list[Section]:
        """The classes that are told least often, and the pairs that are confused most often."""
        lines = [_make_class_line(cell) for cell in self.cells if cell.test.hardest and not cell.is_beside]
        return [Section("Hardest classes", [Table(CLASS_HEADER, lines)])] if lines else []

    @cached_property
    def doubt(self) -> list[Section]:
        """How often sets of answers hold the true class, and how well unknown classes are told from known ones."""
        lines = [line for run in self.runs if (line := _make_doubt_line(run))]
        return [Section("Sets of answers, and unknown classes", [Table(DOUBT_HEADER, lines)])] if lines else []

    @cached_property
    def robustness(self) -> list[Section]:
        """Methods ranked by what probes found; those of one kind of task together."""
        groups = has_probes(group_runs(self.runs), calibration=False)
        return [Section(f"Robustness: {group.title}", [Table(*rank_methods(group))]) for group in groups]

    @cached_property
    def calibration(self) -> list[Section]:
        """Whether probabilities mean what they say, before and after the temperature."""
        groups = has_probes(group_runs(self.runs), calibration=True)
        return [Section(f"Calibration: {group.title}", [Table(*list_calibration(group))]) for group in groups]

    @cached_property
    def notes(self) -> list[str]:
        """Where runs differ from the papers' protocols."""
        differing = (cell for cell in self.cells if cell.deviations)
        return [f"{cell.name}, {cell.row}: {'; '.join(cell.deviations)}" for cell in differing]

    @cached_property
    def warnings(self) -> list[str]:
        """What makes results suspect."""
        return list(dict.fromkeys(f"{cell.name}, {text}" for cell in self.cells for text in cell.warnings))

    @property
    def meanings(self) -> dict[str, str]:
        """Row -> what it is."""
        seen = {cell.row for cell in self.cells}
        return {row: text for row, text in ROWS.items() if any(name == row or name.endswith(row) for name in seen)}

    @property
    def reading(self) -> str:
        """How to read the report, with the tolerances of its metrics."""
        metrics = dict.fromkeys(cell.headline for cell in self.cells)
        own: dict[tuple[float, str], dict[str, None]] = {}
        for figure in read_figures():
            if figure.tolerance is not None and figure.dataset in self.datasets:
                own.setdefault((figure.tolerance, figure.dataset), {})[figure.cell] = None
        tolerances = [_format_tolerance(name, metric(name)) for name in metrics]
        tolerances += [f"{value:g} for {', '.join(cells)} on {dataset}" for (value, dataset), cells in own.items()]
        return READING.format(tolerances="; ".join(tolerances))

    @property
    def cited(self) -> dict[str, str]:
        """Key -> citation, for the papers of all figures shown."""
        return cite(self.datasets)

    @cached_property
    def commands(self) -> list[str]:
        return list(dict.fromkeys(command for run in self.runs if (command := run.command)))


# the results ---------------------------------------------------------------------------------------------------------


def _make_line(cell: Cell) -> tuple[str, ...]:
    """The entries of a cell, in the order of HEADER."""
    figure, summary, shown = cell.published, cell.summary, cell.metric
    training = [run.result.training for run in cell.runs]
    memory = training[0].peak_memory_mib
    return (
        cell.name,
        cell.row,
        cell.dataset,
        cell.task,
        cell.score,
        _format_classes(cell),
        "" if summary.over_seeds is None else f"± {_format_number(shown, summary.over_seeds)}",
        "" if figure is None else f"{figure}[^{figure.source}]",
        "" if figure is None else f"{shown.scale * summary.mean - figure.value:+.{shown.decimals}f}",
        f"{cell.verdict} †" if cell.deviations else cell.verdict,
        cell.mode,
        str(summary.tasks),
        ", ".join(f"{run.result.checkpoint.step} of {run.result.training.steps}" for run in cell.runs),
        format_duration(sum(entry.seconds for entry in training) / len(training)),
        f"{training[0].tasks_per_second:.0f}",
        "" if memory is None else f"{memory:.0f} MiB",
        cell.result.device,
        ", ".join(str(run.seed) for run in cell.runs),
        ", ".join(dict.fromkeys(_abbreviate(run.result.commit) for run in cell.runs)),
    )


def _tell_seen(cell: Cell) -> str:
    return str(cell.result.dataset.get("encoder", {}).get("classes_seen", "unknown"))


def _format_classes(cell: Cell) -> str:
    """The interval over classes and their number: "± 4.21 (20 classes)"; or that all tasks have the same ones."""
    test = cell.test
    number, noun = test.count_pool(cell.result.kind)
    if number is None:
        return ""
    if cell.over_classes is None:
        return f"unknown ({'the same ' if number == test.ways else ''}{count(number, noun)})"
    return f"± {_format_number(cell.metric, cell.over_classes)} ({count(number, noun)})"


def _make_class_line(cell: Cell) -> tuple[str, ...]:
    """The entries of a cell, in the order of CLASS_HEADER."""
    test = cell.test
    at_chance = "" if test.at_chance is None else f"{100 * test.at_chance:.1f} %"
    hardest = ", ".join(f"{name} {_format_number(cell.metric, float(share))}" for name, share in test.hardest)
    pairs = ((first, second, float(share)) for first, second, share in test.confused)
    confused = ", ".join(f"{first} for {second} {100 * share:.0f} %" for first, second, share in pairs)
    return cell.name, cell.row, cell.dataset, at_chance, hardest, confused


def _make_doubt_line(run: Run) -> tuple[str, ...] | None:
    """The entries of a run, in the order of DOUBT_HEADER; None if neither was measured."""
    sets, unknown, accuracy = run.result.sets, run.result.unknown, metric("accuracy")
    if sets is None and unknown is None:
        return None
    over = None if sets is None else sets.ci95_over_classes
    half = "" if unknown is None or unknown.ci95 is None else f" ± {unknown.ci95:.4f}"
    return (
        run.name,
        str(run.seed),
        run.dataset,
        "" if sets is None else accuracy.shown(sets.coverage, sets.ci95),
        "" if over is None else f"± {_format_number(accuracy, over)}",
        "" if sets is None else f"{sets.size:.2f} of {run.result.rows['test'].ways}",
        "" if unknown is None else f"{unknown.auroc:.4f}{half}",
        "" if unknown is None else str(unknown.classes),
    )


def _format_number(metric: Metric, value: float) -> str:
    """A value in shown units, without the unit."""
    return f"{metric.scale * value:.{metric.decimals}f}"


def _abbreviate(commit: str | None) -> str:
    if commit is None:
        return ""
    digest, *dirty = commit.split("-", 1)
    return "-".join([digest[:7], *dirty])


def _format_tolerance(name: str, metric: Metric) -> str:
    if metric.relative:
        return f"{100 * metric.tolerance:g} % relative for {name}"
    return f"{metric.tolerance:g}{f' {metric.unit}' if metric.unit else ''} absolute for {name}"


# by step or instance, and settings that differ -----------------------------------------------------------------------


def _make_vector_table(cell: Cell, by: str) -> Section:
    numbers, start = VECTORS[by]
    found, printed = cell.vectors[by], find_entries(cell.setup, by)
    assert isinstance(found.mean, list)
    assert not isinstance(found.ci95, float)
    halves = [f" ± {_format_number(cell.metric, ci95)}" for ci95 in found.ci95 or ()] or [""] * len(found.mean)
    content = [
        (str(number), f"{_format_number(cell.metric, mean)}{half}", f"{printed[number]:g}" if number in printed else "")
        for number, (mean, half) in enumerate(zip(found.mean, halves), start)
    ]
    heading = f"{cell.name}, {cell.row}, seed {cell.first.seed}: {cell.headline} by {numbers.removesuffix('s')}"
    return Section(heading, [Table((numbers, cell.headline, "published"), content)])


def _make_difference_tables(cells: Iterable[Cell]) -> Iterator[Section]:
    settings: dict[str, dict[str, Run]] = {}
    for cell in cells:
        settings.setdefault(cell.first.dataset, {})[cell.name] = cell.first
    for dataset, runs in settings.items():
        differences = find_differences(list(runs.values()))
        keys = tuple(dict.fromkeys(key for values in differences for key in values))
        if keys:
            rows = [(name, *(values.get(key, "") for key in keys)) for name, values in zip(runs, differences)]
            yield Section(dataset, [Table(("experiment", *keys), rows)])


# comparisons ---------------------------------------------------------------------------------------------------------


def _group_comparable(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    """Groups of cells that were tested on the same tasks, with the same metric, and kept finite scores."""
    found: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        scored = cell.scores is not None and len(cell.scores) > 1 and np.isfinite(cell.scores).all()
        if scored and not cell.row.endswith("_inductive") and not cell.is_beside:
            found.setdefault((cell.test.task_hash, cell.headline), []).append(cell)
    return (group for group in found.values() if len(group) > 1)


def _compare_group(group: list[Cell]) -> Section:
    shown = group[0].metric
    sign = shown.scale if shown.higher_is_better else -shown.scale  # the higher the better
    scores = {f"{cell.name} {cell.row}": sign * cell.scores for cell in group if cell.scores is not None}
    order = dict(sorted(mean_ranks(scores).items(), key=lambda entry: entry[1]))
    by_rank = Table(("method", "mean rank"), [(name, f"{rank:.2f}") for name, rank in order.items()])
    pairs = [_format_pair(entry, shown.decimals) for entry in compare({name: scores[name] for name in order})]
    by_pair = Table(("first", "second", "difference", "p of the mean", "p of the ranks", "corrected"), pairs)
    tasks = f"{group[0].summary.tasks} tasks: {group[0].dataset}, {group[0].task}"
    return Section(f"Compared on the same {tasks}", [by_rank, by_pair])


def _format_pair(entry: Comparison, places: int) -> tuple[str, ...]:
    difference = f"{entry.difference:+.{places}f} ± {entry.ci95:.{places}f}"
    chances = map(_format_chance, (entry.p_mean, entry.p, entry.corrected))
    return entry.first, entry.second, difference, *chances


def _format_chance(p: float) -> str:
    return "< 1e-300" if p < 1e-300 else f"{p:.2g}"  # smaller numbers would be shown as 0
