"""A report as one HTML page that needs nothing else: no script, no font, no network."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup, escape

from metarun.reports import charts
from metarun.reports.collect import Cell, Run
from metarun.reports.tables import Report, Table

RESULTS = (
    "experiment", "row", "result", "over classes", "over seeds", "published", "difference", "verdict", "task",
    "dataset", "mode", "test tasks", "seeds",
)  # fmt: skip
SPEED = (
    "experiment", "dataset", "checkpoint", "training", "tasks/s", "memory", "device", "seeds", "commit",
)  # fmt: skip
PICTURES = ("scores/return_by_episode.png", "scores/regret.png", "explained/behaviour.gif")
MOST_CHARTS = 60  # of curves, and of distributions: drawing one takes tens of milliseconds
VERDICTS = ("reproduced", "above", "below", "better", "worse")


def to_html(report: Report) -> str:
    with charts.page_style():
        return render(
            "page.html.jinja",
            report=report,
            summary=summarise_report(report),
            results=pick(report.overview, RESULTS),
            speed=pick(report.overview, SPEED),
            curves=collect_curves(report.cells),
            distributions=collect_distributions(report.cells),
            pictures=collect_pictures(report.runs),
        )


def render(template: str, **values: Any) -> str:
    """Fill in a template of this package, in the style that all pages have."""
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_read)
    )
    environment.filters |= {"prose": mark_prose, "notes": mark_notes, "anchor": make_anchor, "tone": find_tone}
    return environment.get_template(template).render(style=Markup(_read("page.css")), **values)


def _read(name: str) -> str:
    return files("metarun.reports").joinpath(name).read_text(encoding="utf-8")


def summarise_report(report: Report) -> str:
    settings = {(cell.name, cell.first.dataset) for cell in report.cells}
    verdicts = [cell.verdict for cell in report.cells if cell.verdict]
    counts = (f"{verdicts.count(verdict)} {verdict}" for verdict in dict.fromkeys(verdicts))
    beside = f" Beside published figures: {', '.join(counts)}." if verdicts else ""
    return f"{len(report.runs)} runs of {len(settings)} settings.{beside}"


# text ----------------------------------------------------------------------------------------------------------------


def mark_prose(text: str) -> Markup:
    """Turn the Markdown in our own sentences into HTML: `code`, *emphasis* and addresses."""
    shown = re.sub(r"`(.+?)`", r"<code>\1</code>", escape(text))
    shown = re.sub(r"\*(.+?)\*", r"<em>\1</em>", shown)
    return Markup(re.sub(r"https://\S+?(?=[:;]? |$)", r'<a href="\g<0>">\g<0></a>', shown))


def mark_notes(text: str) -> Markup:
    """Turn `[^key]` in an entry of a table into a link to the source; let long names break where their parts end."""
    parts = re.split(r"\[\^(\w+)\]", escape(text))
    parts[::2] = [re.sub(r"(?<=[/_=])(?=\w)", "<wbr>", part) for part in parts[::2]]
    parts[1::2] = [f' <a class="note" href="#source-{key}">{key}</a>' for key in parts[1::2]]
    return Markup("".join(parts))


def make_anchor(title: str) -> str:
    """The id of a section."""
    return title.lower().replace(" ", "-").replace("'", "")


def find_tone(text: str) -> str:
    """The CSS class of an entry: a verdict, "no" for "no run", "too" for "too short", else empty."""
    first = text.partition(" ")[0]
    return first if first in VERDICTS or text.startswith(("no run", "too short")) else ""


def pick(whole: Table, header: tuple[str, ...]) -> Table:
    """Some columns, without the empty ones. Lines that are then equal become one."""
    columns = zip(whole.header, zip(*whole.rows))
    filled = {name: column for name, column in columns if name in header and any(column)}
    names = tuple(name for name in header if name in filled)
    return Table(names, list(dict.fromkeys(zip(*(filled[name] for name in names)))))


# charts --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curves:
    """The learning curves of a setting."""

    name: str
    about: str
    chart: Markup


@dataclass(frozen=True)
class Drawn:
    """Learning curves, and the names of settings without one."""

    charts: list[Curves]
    without: list[str]  # no metrics.csv
    left: int  # settings beyond MOST_CHARTS


def collect_curves(cells: Iterable[Cell]) -> Drawn:
    """Draw the learning curves of each setting, at most MOST_CHARTS."""
    settings: dict[tuple[str, str], Cell] = {}
    for cell in cells:
        settings.setdefault((cell.name, cell.first.dataset), cell)
    drawn: list[Curves] = []
    without: list[str] = []
    left = 0
    for cell in settings.values():
        if len(drawn) == MOST_CHARTS:
            left += 1
            continue
        seeds = [run.read_curves() for run in cell.runs]
        chart = charts.draw_curves(seeds, cell.metric.axis, f"curves-{len(drawn)}")
        if chart:
            unit = f", {cell.metric.unit}" if cell.metric.unit else ""
            drawn.append(Curves(cell.name, f"{cell.first.dataset}, {cell.headline}{unit}", chart))
        else:
            without.append(cell.name)
    return Drawn(drawn, without, left)


@dataclass(frozen=True)
class Pictures:
    """What a run in a world has drawn, as addresses that hold the pictures."""

    name: str
    about: str
    files: dict[str, str]


def collect_pictures(runs: Iterable[Run]) -> Iterator[Pictures]:
    """Embed the drawings in the folders of runs in which a policy acts, of which `metarun explain` makes the last."""
    for run in runs:
        files = [file for name in PICTURES if (file := run.folder / name).is_file()]
        if files:
            embedded = {file.stem: charts.embed(file.read_bytes(), file.suffix[1:]) for file in files}
            yield Pictures(run.name, f"{run.dataset}, seed {run.seed}", embedded)


@dataclass(frozen=True)
class Spread:
    """The scores of one method: a chart, empty beyond MOST_CHARTS, and quantiles."""

    name: str
    chart: Markup
    numbers: list[str]


@dataclass(frozen=True)
class Group:
    """Methods that were tested on the same tasks."""

    title: str
    metric: str
    ends: tuple[str, str]  # of the common range
    spreads: list[Spread]


@dataclass(frozen=True)
class Distributions:
    groups: list[Group]
    without: list[str]  # no scores/


def collect_distributions(cells: Iterable[Cell]) -> Distributions:
    """Draw the scores of the test tasks, for each set of test tasks a line per method."""
    groups: dict[tuple[str, str], list[Cell]] = {}
    without = []
    for cell in cells:
        if cell.scores is None:
            without.append(f"{cell.name} {cell.row}")
        else:
            groups.setdefault((cell.test.task_hash, cell.headline), []).append(cell)
    made: list[Group] = []
    for group in groups.values():
        made.append(_collect_group(group, MOST_CHARTS - sum(len(other.spreads) for other in made), len(made)))
    return Distributions(made, without)


def _collect_group(group: list[Cell], room: int, number: int) -> Group:
    """Draw the first `room` methods of a group."""
    shown = group[0].metric
    scores = [shown.scale * cell.scores for cell in group if cell.scores is not None]
    span = charts.Span.over(scores, shown.axis)
    spreads = []
    for i, (cell, values) in enumerate(zip(group, scores)):
        low, middle, high = np.quantile(values, (0.05, 0.5, 0.95))
        numbers = [f"{value:.{shown.decimals}f}" for value in (low, middle, values.mean(), high)]
        chart = charts.draw_distribution(values, span, f"scores-{number}-{i}") if i < room else Markup()
        spreads.append(Spread(f"{cell.name} {cell.row}", chart, numbers))
    title = f"{group[0].dataset}, {group[0].task}, {group[0].summary.tasks} tasks"
    return Group(title, group[0].headline, (f"{span.low:.3g}", f"{span.high:.3g}"), spreads)
