"""A report's tables as Markdown, CSV and LaTeX."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

from metarun.reporting.published import by_entry, sources
from metarun.reporting.runs import Cell, Run
from metarun.reporting.statistics import Comparison, compared, ranks

HEADER = (
    "experiment", "row", "dataset", "task", "result", "over seeds", "published", "verdict", "mode", "test tasks",
    "checkpoint", "training", "tasks/s", "device", "seeds", "commit",
)  # fmt: skip
ROWS = {
    "test": "the run's own test; for an experiment, as the method's paper does it",
    "20way": "the same model on tasks of 20 classes",
    "queries15": "the same model with 15 queries per class, all predicted in one batch",
    "_inductive": "the row of that name, with each query predicted without sight of the others",
}
VECTORS = {  # metric, by what, the first entry, how it is written
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
in their mode; where else the run is not what the paper did, a note says so."""


def line(cell: Cell) -> tuple[str, ...]:
    """The entries of a cell, as HEADER names them."""
    run, test = cell.first, cell.test
    split = run.result["config"]["dataset"].get("split")
    training = [other.result["training"] for other in cell.runs]
    return (
        run.name,
        cell.row,
        f"{run.dataset} ({split})" if split else run.dataset,
        task(test),
        score(cell),
        "" if cell.summary.over_seeds is None else f"± {cell.unit * cell.summary.over_seeds:.2f}",
        published(cell),
        cell.verdict,
        cell.mode,
        str(cell.summary.tasks),
        ", ".join(checkpoint(other) for other in cell.runs),
        duration(sum(entry["seconds"] for entry in training) / len(training)),
        f"{training[0]['tasks_per_second']:.0f}",
        run.result["device"],
        ", ".join(str(other.seed) for other in cell.runs),
        ", ".join(dict.fromkeys(short(other.result["commit"]) for other in cell.runs)),
    )


def checkpoint(run: Run) -> str:
    return f"{run.result['checkpoint']['step']} of {run.result['training']['steps']}"


def task(test: dict[str, Any]) -> str:
    if "mse" in test:
        return f"{test['shots']} points"
    queries = "1 query" if test["queries"] == 1 else f"{test['queries']} queries"
    return f"{test['ways']}-way {test['shots']}-shot, {queries} per class"


def score(cell: Cell) -> str:
    mean, ci95 = cell.unit * cell.summary.mean, cell.unit * cell.summary.over_tasks
    name = cell.first.headline(cell.row)
    return f"{mean:.2f} ± {ci95:.2f} %" if name == "accuracy" else f"{name} {mean:.3f} ± {ci95:.3f}"


def published(cell: Cell, mark: bool = True) -> str:
    if cell.published is None:
        return ""
    figure = cell.published
    text = str(figure.value) + (f" ± {figure.plus_minus}" if figure.plus_minus is not None else "")
    return text + (f"[^{figure.source}]" if mark else "")


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


# the parts -----------------------------------------------------------------------------------------------------------


def markdown(cells: Sequence[Cell], commands: Iterable[str]) -> str:
    sections = [
        "# Results",
        "Written by `metarun report` from the runs' own files.",
        table(HEADER, map(line, cells)),
        *vectors(cells),
        *(f"## {title}\n\n{body}" for title, body in comparisons(cells)),
        f"## Where runs are not the papers'\n\n{notes(cells)}",
        f"## What the rows are\n\n{meanings(cells)}",
        f"## How to read\n\n{READING}",
        "## Commands\n\n```bash\n" + "\n".join(dict.fromkeys(commands)) + "\n```",
    ]
    body = "\n\n".join(sections)
    cited = {cell.published.source for cell in cells if cell.published}
    figures = {cell.published.source: cell.published for cell in cells if cell.published}
    read = {"elsewhere": "; as quoted elsewhere", "recalled": "; from memory, not checked", "primary": ""}
    marks = (
        f"[^{key}]: {text}, {figures[key].where}{read[figures[key].read]}"
        for key, text in sources().items()
        if key in cited
    )
    return f"{body}\n\n" + "\n".join(marks) + "\n"


def table(header: tuple[str, ...], content: Iterable[tuple[str, ...]]) -> str:
    rows = [header, ("---",) * len(header), *content]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def vectors(cells: Iterable[Cell]) -> list[str]:
    """Figures with several values per task: mse after each inner step, accuracy at each instance of a class."""
    sections = []
    for cell in cells:
        for name, (metric, by, start, figure) in VECTORS.items():
            if name not in cell.test:
                continue
            found, printed = cell.test[name], by_entry(cell.first.algo, cell.first.dataset, cell.task)
            content = [
                (
                    str(entry),
                    f"{cell.unit * mean:{figure}} ± {cell.unit * ci95:{figure}}",
                    f"{printed[entry]:g}" if entry in printed else "",
                )
                for entry, (mean, ci95) in enumerate(zip(found["mean"], found["ci95"]), start)
            ]
            heading = f"## {cell.first.name}, {cell.row}, seed {cell.first.seed}: {metric} by {by.removesuffix('s')}"
            sections.append(f"{heading}\n\n{table((by, metric, 'published'), content)}")
    return sections


def groups(cells: Iterable[Cell]) -> dict[str, list[Cell]]:
    """Cells that were tested on the same tasks and kept their scores: what can be compared task by task."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.same_tasks and cell.scores is not None and not cell.row.endswith("_inductive"):
            found.setdefault(cell.test["task_hash"], []).append(cell)
    return {key: group for key, group in found.items() if len(group) > 1}


def comparisons(cells: Iterable[Cell]) -> list[tuple[str, str]]:
    """Of each group its methods in the order of their mean rank, and every two of them."""
    sections = []
    for group in groups(cells).values():
        names = [f"{cell.first.name} {cell.row}" for cell in group]
        scores = {name: cell.scores * cell.unit for name, cell in zip(names, group) if cell.scores is not None}
        if "mse" in group[0].test:
            scores = {name: -values for name, values in scores.items()}
        order = sorted(ranks(scores).items(), key=lambda entry: entry[1])
        by_rank = table(("method", "mean rank"), [(name, f"{rank:.2f}") for name, rank in order])
        pairs = table(("first", "second", "difference", "p", "p, corrected"), map(pair, compared(scores)))
        tasks = f"{group[0].summary.tasks} tasks: {group[0].first.dataset}, {group[0].task}"
        sections.append((f"Compared on the same {tasks}", f"{by_rank}\n\n{pairs}"))
    return sections


def pair(entry: Comparison) -> tuple[str, ...]:
    difference = f"{entry.difference:+.2f} ± {entry.ci95:.2f}"
    return entry.first, entry.second, difference, f"{entry.p:.2g}", f"{entry.corrected:.2g}"


def notes(cells: Iterable[Cell]) -> str:
    lines = [f"- {cell.first.name}, {cell.row}: {'; '.join(cell.deviations)}" for cell in cells if cell.deviations]
    return "\n".join(lines) or "Nowhere, in what is compared."


def meanings(cells: Iterable[Cell]) -> str:
    seen = {cell.row for cell in cells}
    known = (row for row in ROWS if any(name == row or name.endswith(row) for name in seen))
    return "\n".join(f"- `{row}`: {ROWS[row]}" for row in known)


def as_csv(cells: Iterable[Cell]) -> str:
    """Numbers without marks: a line for each cell."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    names = ("mean", "over_tasks", "over_seeds", "published", "published_plus_minus", "verdict")
    writer.writerow(("experiment", "row", "dataset", "task", "mode", "seeds", "tasks", *names))
    for cell in cells:
        found, figure = cell.summary, cell.published
        spread = None if found.over_seeds is None else cell.unit * found.over_seeds
        numbers = (cell.unit * found.mean, cell.unit * found.over_tasks, spread)
        written = ("" if number is None or math.isnan(number) else f"{number:.4f}" for number in numbers)
        printed = (None, None) if figure is None else (figure.value, figure.plus_minus)
        about = (cell.first.name, cell.row, cell.first.dataset, cell.task, cell.mode, found.seeds, found.tasks)
        writer.writerow((*about, *written, *printed, cell.verdict))
    return out.getvalue()


def latex(cells: Iterable[Cell]) -> str:
    """A booktabs table of each cell beside the published figure."""
    lines = [
        r"\begin{tabular}{llllll}",
        r"\toprule",
        r"method & dataset & task & mode & ours & published \\",
        r"\midrule",
    ]
    for cell in cells:
        entries = (cell.first.name, cell.first.dataset, cell.task, cell.mode, score(cell), published(cell, mark=False))
        lines.append(" & ".join(map(escaped, entries)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escaped(text: str) -> str:
    for mark in "&%#_":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("±", r"$\pm$")


def commands(runs: Iterable[Run]) -> Iterable[str]:
    return (command for run in runs if (command := run.command))
