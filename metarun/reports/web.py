"""A report as one HTML page that needs nothing else: no script, no font, no picture, no network."""

from collections.abc import Iterable, Iterator
from importlib.resources import files

import numpy as np

from metarun.reports import charts
from metarun.reports.collect import Cell
from metarun.reports.markup import Markup, el, join, noted, prose
from metarun.reports.tables import READING, Report, Section, Table, decimals, task, whereof

RESULTS = (
    "experiment", "row", "result", "over seeds", "published", "difference", "verdict", "task", "dataset", "mode",
    "test tasks", "seeds",
)  # fmt: skip
SPEED = (
    "experiment", "dataset", "checkpoint", "training", "tasks/s", "memory", "device", "seeds", "commit",
)  # fmt: skip
POLICY = "default-src 'none'; style-src 'unsafe-inline'"  # the browser itself refuses whatever else got in


def page(report: Report) -> str:
    parts = {title: body for title, body in sections(report).items() if body}
    contents = (el("a", title, href=f"#{place(title)}") for title in parts)
    body = (el("section", el("h2", title), body, id=place(title)) for title, body in parts.items())
    head = el(
        "head",
        Markup('<meta charset="utf-8"><meta name="viewport" content="width=device-width">'),
        Markup(f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'),
        el("title", "metarun: results"),
        el("style", Markup(files("metarun.reports").joinpath("page.css").read_text(encoding="utf-8"))),
    )
    top = el("header", el("h1", "Results"), el("p", summary(report)), el("nav", contents, aria_label="Contents"))
    return f"<!doctype html>\n{el('html', head, el('body', top, el('main', body)), lang='en')}\n"


def sections(report: Report) -> dict[str, Markup]:
    """Title -> body, empty where there is nothing to say."""
    return {
        "Results": table(picked(report.overview, RESULTS)),
        "The papers' figures": several(report.papers),
        "Learning curves": curves(report.cells),
        "Scores of the test tasks": distributions(report.cells),
        "Compared task by task": several(report.comparisons),
        "By inner step, by instance": several(report.steps),
        "Speed and memory": table(picked(report.overview, SPEED)),
        "Settings that differ": several(report.differing),
        "Where runs are not the papers'": listed(map(prose, report.notes)) or el("p", "Nowhere, in what is compared."),
        "What the rows are": listed(prose(f"`{row}`: {text}") for row, text in report.meanings.items()),
        "How to read": join(el("p", prose(paragraph)) for paragraph in READING.split("\n\n")),
        "Sources": listed((prose(text) for text in report.cited.values()), [f"source-{key}" for key in report.cited]),
        "Commands": el("pre", "\n".join(report.commands), tabindex=0),
    }


def summary(report: Report) -> str:
    settings = {(cell.name, cell.first.dataset) for cell in report.cells}
    verdicts = [cell.verdict for cell in report.cells if cell.verdict]
    counts = (f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    beside = f" Beside published figures: {', '.join(counts)}." if verdicts else ""
    return f"{len(report.runs)} runs of {len(settings)} settings.{beside}"


# tables --------------------------------------------------------------------------------------------------------------


def picked(whole: Table, header: tuple[str, ...]) -> Table:
    """Some columns, without the empty ones; lines that are alike then are one."""
    columns = zip(whole.header, zip(*whole.rows))
    filled = {name: column for name, column in columns if name in header and any(column)}
    names = tuple(name for name in header if name in filled)
    return Table(names, list(dict.fromkeys(zip(*(filled[name] for name in names)))))


def several(parts: Iterable[Section]) -> Markup:
    return join(join([el("h3", part.title), *map(table, part.tables)]) for part in parts)


def table(content: Table) -> Markup:
    heading = el("tr", (el("th", name, scope="col") for name in content.header))
    lines = (el("tr", el("th", noted(row[0]), scope="row"), map(entry, row[1:])) for row in content.rows)
    return boxed(el("table", el("thead", heading), el("tbody", lines)))


def entry(text: str) -> Markup:
    kind = text.split(" ")[0]
    known = kind in ("reproduced", "above", "below", "better", "worse") or text.startswith("no run")
    return el("td", noted(text), class_=kind) if known else el("td", noted(text))


def boxed(content: Markup) -> Markup:
    """What is too wide is scrolled by itself, with keys too."""
    return el("div", content, class_="box", tabindex=0)


def listed(lines: Iterable[Markup], ids: Iterable[str] | None = None) -> Markup:
    items = [el("li", line, id=name) for line, name in zip(lines, ids)] if ids else [el("li", line) for line in lines]
    return el("ul", items) if items else Markup()


def place(title: str) -> str:
    return title.lower().replace(" ", "-").replace("'", "")


# charts --------------------------------------------------------------------------------------------------------------


def curves(cells: Iterable[Cell]) -> Markup:
    """One for each setting."""
    settings = {(cell.name, cell.first.dataset): cell for cell in reversed(list(cells))}
    drawn, without = [], []
    for (name, dataset), cell in reversed(settings.items()):
        metric = cell.first.headline(cell.row)
        courses = [run.course(metric, cell.unit) for run in cell.runs]
        chart = charts.curves(courses, log=metric == "mse")
        about = f"{dataset}, {metric}{', %' if cell.unit == 100 else ''}"
        if chart:
            drawn.append(el("figure", el("figcaption", el("b", noted(name)), " ", about), chart))
        else:
            without.append(name)
    legend = el("p", key("train"), " training, ", key("val"), " validation; across: steps; one line for each seed.")
    missing = el("p", f"Without a metrics.csv: {', '.join(without)}.") if without else ""
    return join([legend, el("div", drawn, class_="charts"), missing] if drawn else [missing])


def key(split: str) -> Markup:
    return el("svg", el("path", class_=split, d="M0 6H24"), viewBox="0 0 24 12", width=24, height=12, class_="key")


def distributions(cells: Iterable[Cell]) -> Markup:
    """Of every set of test tasks a table, a line for each method."""
    groups: dict[str, list[Cell]] = {}
    without = []
    for cell in cells:
        if cell.scores is None:
            without.append(f"{cell.name} {cell.row}")
        else:
            groups.setdefault(cell.test["task_hash"], []).append(cell)
    parts = [part for group in groups.values() for part in (el("h3", same(group)), spread(group))]
    missing = el("p", f"Without scores: {', '.join(without)}.") if without else ""
    return join([*parts, missing])


def same(group: list[Cell]) -> str:
    return f"{whereof(group[0].first)}, {task(group[0].test)}, {group[0].summary.tasks} tasks"


def spread(group: list[Cell]) -> Markup:
    scores = [cell.unit * cell.scores for cell in group if cell.scores is not None]
    metric = group[0].first.headline(group[0].row)
    scale = charts.span(scores, log=metric == "mse")
    ends = el("span", f"{scale.low:.3g}"), el("span", metric), el("span", f"{scale.high:.3g}")
    names = ("5 %", "median", "mean", "95 %")
    heading = el("tr", el("th", "experiment"), el("th", *ends, class_="axis"), (el("th", name) for name in names))
    lines = (el("tr", one(cell, values, scale)) for cell, values in zip(group, scores))
    return boxed(el("table", el("thead", heading), el("tbody", lines)))


def one(cell: Cell, values: np.ndarray, scale: charts.Scale) -> Iterator[Markup]:
    low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
    yield el("th", noted(f"{cell.name} {cell.row}"), scope="row")
    yield el("td", charts.distribution(values, scale))
    for value in (low, middle, values.mean(), high):
        yield el("td", f"{value:.{decimals(cell)}f}")
