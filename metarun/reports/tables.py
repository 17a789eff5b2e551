"""What a report says of finished runs, as text in tables: written out as Markdown, HTML, CSV and LaTeX elsewhere."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from metarun.reports.collect import Cell, Run, cells, differing
from metarun.reports.published import READ, Figure, by_entry, figures, sources
from metarun.reports.statistics import Comparison, compared, ranks

HEADER = (
    "experiment", "row", "dataset", "task", "result", "over seeds", "published", "difference", "verdict", "mode",
    "test tasks", "checkpoint", "training", "tasks/s", "memory", "device", "seeds", "commit",
)  # fmt: skip
ROWS = {
    "test": "the run's own test; for an experiment, as the method's paper does it",
    "20way": "the same model on tasks of 20 classes",
    "queries15": "the same model with 15 queries per class, all predicted in one batch",
    "_inductive": "the row of that name, with each query predicted without sight of the others",
}
VECTORS = {  # metric, by what, the first number, how it is written
    "mse_by_step": ("mse", "inner steps", 0, ".3f"),
    "accuracy_by_instance": ("accuracy", "instance", 1, ".2f"),
}
READING = """\
A result is the mean over the test tasks, ± 1.96 standard deviations / sqrt(tasks): that interval covers the draw of the
tasks, not that of the seed. *Over seeds* is half a 95 % interval over training seeds, by Student's t, where there are
several. Runs with the same dataset and task are tested on the same tasks, whatever their method and seed. The
checkpoint is the one that scored best on validation tasks unless a command sets `eval.checkpoint`. *Transductive*
results normalise by the statistics of a batch that holds all queries of a task, *inductive* ones do not.
*Reproduced* is what lies no further from the published figure than both intervals together or, on Omniglot, 0.5 points
at 5 ways and 1 point at 20 ways, elsewhere 1 point, of an mse a tenth. Published figures stand beside the rows tested
in their mode; where else the run is not what the paper did, † stands and a note says how. In the papers' own tables the
published figure is in brackets.

Compared are methods on the same test tasks: every two of a few, of more than eight each with that of the best mean
rank. The difference is positive where the first is better, with a paired 95 % interval; p is by Wilcoxon's signed-rank
test, with equal tasks as Pratt has them, corrected by Holm's method for all pairs of its table."""


class Table(NamedTuple):
    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]


class Section(NamedTuple):
    title: str
    tables: list[Table]


@dataclass(frozen=True)
class Report:
    """Its parts, each made once, whatever the number of forms it is written in."""

    runs: list[Run]

    @cached_property
    def cells(self) -> list[Cell]:
        return list(cells(self.runs))

    @cached_property
    def overview(self) -> Table:
        return Table(HEADER, [line(cell) for cell in self.cells])

    @cached_property
    def papers(self) -> list[Section]:
        """The papers' tables on the datasets that were run: our result beside each figure, or that there is none."""
        datasets = dict.fromkeys(cell.first.dataset for cell in self.cells)
        return [paper_table(dataset, self.cells) for dataset in datasets if printed(dataset)]

    @cached_property
    def steps(self) -> list[Section]:
        """Figures with several values per task: mse after each inner step, accuracy at each instance of a class."""
        return [by_number(cell, name) for cell in self.cells for name in VECTORS if name in cell.test]

    @cached_property
    def differing(self) -> list[Section]:
        """Of each dataset a line for every setting, with what is not the same in all."""
        return [*differences(self.cells)]

    @cached_property
    def comparisons(self) -> list[Section]:
        """Of each group its methods in the order of their mean rank, and pairs of them."""
        return [comparison(group) for group in groups(self.cells)]

    @cached_property
    def notes(self) -> list[str]:
        """Where runs are not the papers'."""
        told = (cell for cell in self.cells if cell.deviations)
        return [f"{cell.name}, {cell.row}: {'; '.join(cell.deviations)}" for cell in told]

    @property
    def meanings(self) -> dict[str, str]:
        """What the rows are."""
        seen = {cell.row for cell in self.cells}
        return {row: text for row, text in ROWS.items() if any(name == row or name.endswith(row) for name in seen)}

    @property
    def cited(self) -> dict[str, str]:
        """Key -> citation, of the papers of all figures shown."""
        shown: dict[str, dict[str, None]] = {}
        for dataset in dict.fromkeys(cell.first.dataset for cell in self.cells):
            for figure in printed(dataset):
                shown.setdefault(figure.source, {})[figure.where + READ[figure.read]] = None
        return {key: f"{text}: {'; '.join(shown[key])}" for key, text in sources().items() if key in shown}

    @cached_property
    def commands(self) -> list[str]:
        return list(dict.fromkeys(command for run in self.runs if (command := run.command)))


# the results ---------------------------------------------------------------------------------------------------------


def line(cell: Cell) -> tuple[str, ...]:
    """The entries of a cell, as HEADER names them."""
    run, figure = cell.first, cell.published
    training = [other.result["training"] for other in cell.runs]
    memory = training[0].get("peak_memory_mib")
    return (
        cell.name,
        cell.row,
        whereof(run),
        task(cell.test),
        score(cell),
        "" if cell.summary.over_seeds is None else f"± {cell.unit * cell.summary.over_seeds:.2f}",
        "" if figure is None else f"{figure}[^{figure.source}]",
        "" if figure is None else f"{cell.unit * cell.summary.mean - figure.value:+.{decimals(cell)}f}",
        f"{cell.verdict} †" if cell.deviations else cell.verdict,
        cell.mode,
        str(cell.summary.tasks),
        ", ".join(checkpoint(other) for other in cell.runs),
        duration(sum(entry["seconds"] for entry in training) / len(training)),
        f"{training[0]['tasks_per_second']:.0f}",
        "" if memory is None else f"{memory:.0f} MiB",
        run.result["device"],
        ", ".join(str(other.seed) for other in cell.runs),
        ", ".join(dict.fromkeys(short(other.result["commit"]) for other in cell.runs)),
    )


def whereof(run: Run) -> str:
    split = run.result["config"]["dataset"].get("split")
    return f"{run.dataset} ({split})" if split else run.dataset


def checkpoint(run: Run) -> str:
    return f"{run.result['checkpoint']['step']} of {run.result['training']['steps']}"


def task(test: dict[str, Any]) -> str:
    if "mse" in test:
        return f"{test['shots']} points"
    queries = "1 query" if test["queries"] == 1 else f"{test['queries']} queries"
    return f"{test['ways']}-way {test['shots']}-shot, {queries} per class"


def decimals(cell: Cell) -> int:
    return 2 if cell.unit == 100 else 3


def score(cell: Cell) -> str:
    mean, ci95 = (f"{cell.unit * value:.{decimals(cell)}f}" for value in (cell.summary.mean, cell.summary.over_tasks))
    name = cell.first.headline(cell.row)
    return f"{mean} ± {ci95} %" if name == "accuracy" else f"{name} {mean} ± {ci95}"


def duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


def short(commit: str | None) -> str:
    if commit is None:
        return ""
    digest, *dirty = commit.split("-", 1)
    return "-".join([digest[:7], *dirty])


# the papers' tables --------------------------------------------------------------------------------------------------


def printed(dataset: str) -> list[Figure]:
    """Of a figure for each number of inner steps that for most, of one by instance that after the K-th."""

    def counts(figure: Figure) -> bool:
        _, ways, shots = figure.cell.rstrip("s").rpartition("w")
        return not ways or figure.entry in (None, int(shots) + 1)

    ours = (figure for figure in figures() if figure.dataset == dataset and counts(figure))
    return list({(figure.source, figure.algo, figure.cell, theirs(figure)): figure for figure in ours}.values())


def theirs(figure: Figure) -> str:
    return {True: "transductive", False: "inductive", None: ""}[figure.protocol.get("transductive")]


def paper_table(dataset: str, cells: Iterable[Cell]) -> Section:
    ours: dict[Figure, list[Cell]] = {}
    for cell in cells:
        if cell.published:
            ours.setdefault(cell.published, []).append(cell)
    found = printed(dataset)
    columns = tuple(dict.fromkeys(figure.cell for figure in found))
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for figure in found:
        row = rows.setdefault((figure.algo, theirs(figure), figure.source), {})
        row[figure.cell] = f"{told(ours.get(figure, []))} ({figure})"
    lines = [
        (f"{algo}[^{source}]", mode, *(row.get(cell, "") for cell in columns))
        for (algo, mode, source), row in rows.items()
    ]
    return Section(f"The papers' figures on {dataset}", [Table(("algo", "mode", *columns), lines)])


def told(cells: list[Cell]) -> str:
    """Of several none: to choose by their test would flatter us."""
    if len(cells) != 1:
        return f"{len(cells)} settings, above" if cells else "no run"
    return f"{score(cells[0])} †" if cells[0].deviations else score(cells[0])


def by_number(cell: Cell, name: str) -> Section:
    metric, by, start, form = VECTORS[name]
    found, printed = cell.test[name], by_entry(cell.first.algo, cell.first.dataset, cell.task)
    content = [
        (
            str(number),
            f"{cell.unit * mean:{form}} ± {cell.unit * ci95:{form}}",
            f"{printed[number]:g}" if number in printed else "",
        )
        for number, (mean, ci95) in enumerate(zip(found["mean"], found["ci95"]), start)
    ]
    heading = f"{cell.name}, {cell.row}, seed {cell.first.seed}: {metric} by {by.removesuffix('s')}"
    return Section(heading, [Table((by, metric, "published"), content)])


def differences(cells: Iterable[Cell]) -> Iterator[Section]:
    settings: dict[str, dict[str, Run]] = {}
    for cell in cells:
        settings.setdefault(cell.first.dataset, {})[cell.name] = cell.first
    for dataset, runs in settings.items():
        apart = differing(list(runs.values()))
        keys = tuple(dict.fromkeys(key for values in apart for key in values))
        if keys:
            rows = [(name, *(values.get(key, "") for key in keys)) for name, values in zip(runs, apart)]
            yield Section(dataset, [Table(("experiment", *keys), rows)])


# comparisons ---------------------------------------------------------------------------------------------------------


def groups(cells: Iterable[Cell]) -> Iterator[list[Cell]]:
    """Cells that were tested on the same tasks and kept their scores: what can be compared task by task."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        scored = cell.scores is not None and len(cell.scores) > 1 and np.isfinite(cell.scores).all()
        if scored and not cell.row.endswith("_inductive"):
            found.setdefault(cell.test["task_hash"], []).append(cell)
    return (group for group in found.values() if len(group) > 1)


def comparison(group: list[Cell]) -> Section:
    better = -1 if "mse" in group[0].test else 1  # the higher the better
    scores = {f"{cell.name} {cell.row}": better * cell.unit * cell.scores for cell in group if cell.scores is not None}
    order = dict(sorted(ranks(scores).items(), key=lambda entry: entry[1]))
    by_rank = Table(("method", "mean rank"), [(name, f"{rank:.2f}") for name, rank in order.items()])
    pairs = (pair(entry, decimals(group[0])) for entry in compared({name: scores[name] for name in order}))
    by_pair = Table(("first", "second", "difference", "p", "p, corrected"), list(pairs))
    tasks = f"{group[0].summary.tasks} tasks: {whereof(group[0].first)}, {task(group[0].test)}"
    return Section(f"Compared on the same {tasks}", [by_rank, by_pair])


def pair(entry: Comparison, places: int) -> tuple[str, ...]:
    difference = f"{entry.difference:+.{places}f} ± {entry.ci95:.{places}f}"
    return entry.first, entry.second, difference, chance(entry.p), chance(entry.corrected)


def chance(p: float) -> str:
    return "< 1e-300" if p < 1e-300 else f"{p:.2g}"  # what doubles cannot hold is no zero
