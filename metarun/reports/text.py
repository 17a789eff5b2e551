"""A report as Markdown, CSV and LaTeX."""

import csv
import io
import math
from collections.abc import Iterable

from metarun.reports.collect import Cell
from metarun.reports.tables import Report, Section

LATEX: dict[str, str | int | None] = {
    **{mark: rf"\{mark}" for mark in "&%#_${}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "‡": r"\ddag{}",
}
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # a spreadsheet would compute a cell that starts so


def to_markdown(report: Report) -> str:
    sections = [
        "# Results",
        "Written by `metarun report` from the runs' own files.",
        *([f"Not read:\n\n{_format_bullets(report.skipped)}"] if report.skipped else []),
        *([format_table(*report.overview)] if report.overview.rows else []),
        *map(
            _format_section,
            [
                *report.encoded,
                *report.papers,
                *report.hardest,
                *report.doubt,
                *report.robustness,
                *report.calibration,
                *report.steps,
                *report.comparisons,
            ],
        ),
        *(["## Warnings", _format_bullets(report.warnings)] if report.warnings else []),
        "## Where runs differ from the papers",
        _format_bullets(report.notes) or "Nowhere, as far as it is known.",
        "## What the rows are",
        _format_bullets(f"`{row}`: {meaning}" for row, meaning in report.meanings.items()),
        "## How to read",
        report.reading,
        "## Commands",
        "```bash\n" + "\n".join(report.commands) + "\n```",
        "\n".join(f"[^{key}]: {text}" for key, text in report.cited.items()),
    ]
    return "\n\n".join(sections).rstrip() + "\n"


def _format_section(part: Section) -> str:
    return "\n\n".join([f"## {part.title}", *(format_table(*content) for content in part.tables)])


def format_table(header: tuple[str, ...], content: Iterable[tuple[str, ...]]) -> str:
    """A table; a bar within an entry is escaped."""
    rows = [header, ("---",) * len(header), *content]
    return "\n".join(f"| {' | '.join(entry.replace('|', chr(92) + '|') for entry in row)} |" for row in rows)


def _format_bullets(lines: Iterable[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def to_csv(cells: Iterable[Cell]) -> str:
    """A line for each cell, with numbers in the unit of the metric. No text is taken for a formula."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    spreads = ("over_tasks", "over_classes", "over_seeds")
    names = ("mean", *spreads, "published", "published_plus_minus", "verdict", "metric", "unit")
    writer.writerow(("experiment", "row", "dataset", "task", "mode", "seeds", "tasks", *names))
    for cell in cells:
        found, figure, shown = cell.summary, cell.published, cell.metric
        numbers = (found.mean, found.over_tasks, cell.over_classes, found.over_seeds)
        known = (math.nan if number is None else number for number in numbers)
        written = (f"{shown.scale * number:.4f}" if math.isfinite(number) else "" for number in known)
        printed = (None, None) if figure is None else (figure.value, figure.plus_minus)
        about = map(defuse, (cell.name, cell.row, cell.first.dataset, cell.setup.cell, cell.mode))
        kind = map(defuse, (cell.verdict, cell.headline, shown.unit))
        writer.writerow((*about, found.seeds, found.tasks, *written, *printed, *kind))
    return out.getvalue()


def defuse(text: str) -> str:
    """The text, which no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def to_latex(cells: Iterable[Cell]) -> str:
    """A booktabs table of each cell beside the published figure."""
    lines = [
        r"\begin{tabular}{llllll}",
        r"\toprule",
        r"method & dataset & task & mode & ours & published \\",
        r"\midrule",
    ]
    for cell in cells:
        entries = (cell.name, cell.first.dataset, cell.setup.cell, cell.mode, cell.score, str(cell.published or ""))
        lines.append(" & ".join(map(_escape_latex, entries)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _escape_latex(text: str) -> str:
    return text.translate(str.maketrans(LATEX))
