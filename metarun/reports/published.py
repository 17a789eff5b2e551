"""Figures that papers printed, and how far a run is from the paper's protocol."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import yaml

from metarun.config.traits import HEADLINES, Kind, Metric

READ = {"primary": "", "elsewhere": " (as quoted elsewhere)", "recalled": " (from memory, not checked)"}
By = Literal["step", "instance"]
FEWEST = 600  # test tasks that a verdict needs, as many as papers of this field use
SHORT = 0.5  # of the paper's training steps, below which a run cannot be worse than the paper, only too short


@dataclass(frozen=True, kw_only=True)
class Setup:
    """How a row of a run was trained and tested: all that its published figure depends on."""

    algo: str
    dataset: str
    config: Mapping[str, Any]  # all settings of the run
    metric: str
    kind: Kind
    ways: int
    shots: int
    queries: int
    transductive: bool
    inner_steps: int | None
    steps: int  # of training
    checkpoint: str

    @property
    def cell(self) -> str:
        """The column of a paper's table: "5w1s", "5s" for regression, "0+10" for control."""
        if self.kind == "control":
            return f"{self.shots}+{self.queries}"
        return f"{self.shots}s" if self.kind == "regression" else f"{self.ways}w{self.shots}s"

    def entry(self, by: By) -> int | None:
        """The entry of a figure by inner step or by instance that is the result: the last step, the K+1st instance."""
        return self.inner_steps if by == "step" else self.shots + 1


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number in a paper, in the shown unit of its metric, and the protocol behind it; None: not known."""

    algo: str
    dataset: str
    cell: str  # "5w1s", "5s" for regression, "0+10" for control
    metric: str
    by: By | None  # the table has a figure for each inner step or instance
    entry: int | None  # which of them this is
    value: float
    plus_minus: float | None
    tolerance: float | None  # in place of the metric's
    read: str  # key of READ
    where: str  # the table
    source: str  # key of `read_sources`
    transductive: bool | None
    queries: int | None
    steps: int | None
    least_steps: int | None  # where their number is not known
    checkpoint: str | None
    validation: str | None  # its classes are "held out", or "trained on" in the end
    settings: Mapping[str, Any] = field(hash=False)  # path -> value: {"dataset.split": "random"}

    def __str__(self) -> str:
        return str(self.value) + (f" ± {self.plus_minus}" if self.plus_minus is not None else "")

    @property
    def world(self) -> dict[str, Any]:
        """In control, the settings that make the paper's tasks other tasks: path -> value."""
        control = "+" in self.cell
        return {path: value for path, value in self.settings.items() if control and path.startswith("dataset.")}

    @property
    def column(self) -> str:
        """The heading of the figure in a table: its cell, in control with the world."""
        return " ".join(
            [self.cell, *(f"{path.removeprefix('dataset.')}={value}" for path, value in self.world.items())]
        )

    @property
    def mode(self) -> str:
        return {True: "transductive", False: "inductive", None: ""}[self.transductive]

    def matches(self, setup: Setup) -> bool:
        """Whether the run belongs beside this figure. Transductive figures belong to transductive rows only."""
        mine = (self.algo, self.dataset, self.cell, self.metric)
        return (
            mine == (setup.algo, setup.dataset, setup.cell, setup.metric)
            and (self.by is None or self.entry == setup.entry(self.by))
            and self.transductive in (None, setup.transductive)
            and all(look_up(setup.config, path) == value for path, value in self.world.items())
        )

    def deviations(self, setup: Setup) -> list[str]:
        """Where the run differs from the paper's protocol: "training steps 8000, not 60000"."""
        compared = (
            ("queries per class", setup.queries, self.queries),
            ("training steps", setup.steps, self.steps),
            ("checkpoint", setup.checkpoint, self.checkpoint),
            ("validation classes", "held out", self.validation),
            *((path, look_up(setup.config, path), theirs) for path, theirs in self.settings.items()),
        )
        return [f"{what} {ours}, not {theirs}" for what, ours, theirs in compared if theirs not in (None, ours)]

    @property
    def unknown(self) -> list[str]:
        """What is not known of the paper's protocol, so that no run can be compared in it."""
        facts = {
            "queries per class": self.queries,
            "training steps": self.steps,
            "checkpoint": self.checkpoint,
            "validation classes": self.validation,
            "ways in training": self.settings.get("ways", None if "w" in self.cell else ""),
            "schedule": self.settings.get("schedule.name"),
        }
        return [what for what, value in facts.items() if value is None]

    def judge(self, mean: float, ci95: float, tasks: int, steps: int, metric: Metric) -> str:
        """Compare a result, in shown units: "reproduced" within the tolerance or, if that is more, both intervals.

        Our interval counts up to the tolerance, and few tasks have no verdict: a vague result is not a better one.
        What is worse after less than half of the paper's training steps is "too short".
        """
        if tasks < FEWEST:
            return "too few tasks"
        tolerance = metric.allowed(self.value) if self.tolerance is None else self.tolerance
        if abs(mean - self.value) <= max(tolerance, min(ci95, tolerance) + (self.plus_minus or 0.0)):
            return "reproduced"
        worse, better = ("below", "above") if metric.higher_is_better else ("worse", "better")
        if (mean > self.value) == metric.higher_is_better:
            return better
        return "too short" if self.is_longer(steps) else worse

    def is_longer(self, steps: int) -> bool:
        """Whether so many training steps are less than half of the paper's."""
        return steps < SHORT * (self.steps or self.least_steps or 0)


def look_up(config: Mapping[str, Any], path: str) -> Any:
    """The value at a path, for instance "dataset.split"; None if there is none."""
    value: Any = config
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value


@cache
def read_papers() -> dict[str, Any]:
    """The content of published.yaml."""
    text = files("metarun.reports").joinpath("published.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def read_sources() -> dict[str, str]:
    """Key -> citation with its address."""
    return {key: f"{paper['citation']}, {paper['url']}" for key, paper in read_papers().items()}


@cache
def read_figures() -> tuple[Figure, ...]:
    """Every published figure, in the order of the file."""
    tables = ((source, table) for source, paper in read_papers().items() for table in paper["tables"])
    return tuple(figure for source, table in tables for figure in _read_table(source, table))


def _read_table(source: str, table: Mapping[str, Any]) -> Iterator[Figure]:
    protocol, settings = table["protocol"], table.get("settings", {})
    for algo, row in table["figures"].items():
        for cell, printed in row.items():
            queries = protocol.get("queries")
            ways = {"ways": _ways(cell)} if settings.get("ways") == "cell" else {}
            for entry, value, plus_minus in _read_cell(printed):
                yield Figure(
                    algo=algo,
                    dataset=table["dataset"],
                    cell=cell,
                    metric=table.get("metric", HEADLINES["classification"]),
                    by=table.get("by"),
                    entry=entry,
                    value=value,
                    plus_minus=plus_minus,
                    tolerance=table.get("tolerance", {}).get(cell),
                    read=table["read"],
                    where=table["where"],
                    source=source,
                    transductive=protocol.get("transductive"),
                    queries=_shots(cell) if queries == "shots" else queries,
                    steps=protocol.get("steps"),
                    least_steps=protocol.get("least_steps"),
                    checkpoint=protocol.get("checkpoint"),
                    validation=protocol.get("validation"),
                    settings={**settings, **ways},
                )


def _read_cell(printed: Any) -> Iterator[tuple[int | None, float, float | None]]:
    """(entry, value, plus-minus) for each number in a cell of published.yaml."""
    if isinstance(printed, dict):
        yield from ((entry, value, None) for entry, value in printed.items())
    else:
        value, *plus_minus = printed
        yield None, value, plus_minus[0] if plus_minus else None


def _ways(cell: str) -> int:
    return int(cell.partition("w")[0])


def _shots(cell: str) -> int:
    return int(cell.rpartition("w")[2].rstrip("s"))


def find_figure(setup: Setup) -> Figure | None:
    """The figure for a row of a run; of several the one whose protocol the run follows best."""
    here = (figure for figure in read_figures() if figure.matches(setup))
    return min(here, key=lambda figure: len(figure.deviations(setup)), default=None)


def find_entries(setup: Setup, by: str) -> dict[int, float]:
    """The figures for each inner step or instance of the row's cell."""
    place = (setup.algo, setup.dataset, setup.cell, setup.metric, by)

    def belongs(figure: Figure) -> bool:
        return place == (figure.algo, figure.dataset, figure.cell, figure.metric, figure.by)

    return {figure.entry: figure.value for figure in read_figures() if figure.entry is not None and belongs(figure)}
