"""A report as Markdown, CSV and LaTeX."""

import csv
import io
import math
from collections.abc import Iterable

from metarun.reports.collect import Cell
from metarun.reports.tables import READING, Report, Section, score


def markdown(report: Report) -> str:
    sections = [
        "# Results",
        "Written by `metarun report` from the runs' own files.",
        table(*report.overview),
        *map(section, [*report.papers, *report.steps, *report.comparisons]),
        "## Where runs are not the papers'",
        listed(report.notes) or "Nowhere, in what is compared.",
        "## What the rows are",
        listed(f"`{row}`: {meaning}" for row, meaning in report.meanings.items()),
        "## How to read",
        READING,
        "## Commands",
        "```bash\n" + "\n".join(report.commands) + "\n```",
        "\n".join(f"[^{key}]: {text}" for key, text in report.cited.items()),
    ]
    return "\n\n".join(sections).rstrip() + "\n"


def section(part: Section) -> str:
    return "\n\n".join([f"## {part.title}", *(table(*content) for content in part.tables)])


def table(header: tuple[str, ...], content: Iterable[tuple[str, ...]]) -> str:
    rows = [header, ("---",) * len(header), *content]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def listed(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


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
        about = (cell.name, cell.row, cell.first.dataset, cell.task, cell.mode, found.seeds, found.tasks)
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
        entries = (cell.name, cell.first.dataset, cell.task, cell.mode, score(cell), str(cell.published or ""))
        lines.append(" & ".join(map(escaped, entries)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def escaped(text: str) -> str:
    for mark in "&%#_":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("±", r"$\pm$")
