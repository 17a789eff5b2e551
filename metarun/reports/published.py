"""What papers printed, and how far a run's protocol is theirs."""

from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

POINTS = {5: 0.5, 20: 1.0}  # by ways: what counts as reproduced on Omniglot, in percent
ELSEWHERE = 1.0  # and on other datasets
READ = {"primary": "", "elsewhere": " (as quoted elsewhere)", "recalled": " (from memory, not checked)"}


@dataclass(frozen=True)
class Figure:
    """A number of a paper: mean accuracy in percent, or mse, of one cell of a table."""

    algo: str
    dataset: str
    cell: str  # as "5w1s", of a regression "5s"
    entry: int | None  # inner steps, or instance of a class, where the table has a figure for each of several
    value: float
    plus_minus: float | None
    interval: str | None  # what the plus-minus is
    read: str  # primary, elsewhere, recalled
    where: str  # the table
    source: str  # key of `sources()`
    protocol: dict[str, Any] = field(hash=False)
    data: dict[str, Any] = field(hash=False)  # settings of the data set

    def __str__(self) -> str:
        return str(self.value) + (f" ± {self.plus_minus}" if self.plus_minus is not None else "")


@cache
def _papers() -> dict[str, Any]:
    text = files("metarun.reports").joinpath("published.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def sources() -> dict[str, str]:
    """Key -> citation with its address."""
    return {key: f"{paper['citation']}, {paper['url']}" for key, paper in _papers().items()}


@cache
def figures() -> tuple[Figure, ...]:
    """All that is printed, in the order of the file."""
    return tuple(
        Figure(
            algo=algo,
            dataset=table["dataset"],
            cell=cell,
            entry=number,
            value=entry[0],
            plus_minus=entry[1] if len(entry) > 1 else None,
            interval=table.get("interval"),
            read=table["read"],
            where=table["where"],
            source=source,
            protocol=table["protocol"],
            data=table.get("data", {}),
        )
        for source, paper in _papers().items()
        for table in paper["tables"]
        for algo, row in table["figures"].items()
        for cell, printed in row.items()
        for number, entry in _entries(printed)
    )


def _entries(printed: list[float] | dict[int, float]) -> list[tuple[int | None, list[float]]]:
    return [(number, [value]) for number, value in printed.items()] if isinstance(printed, dict) else [(None, printed)]


def cell_name(row: dict[str, Any]) -> str:
    """As tables call a row of a result: "5w1s", or of a regression "5s"."""
    return f"{row['shots']}s" if "mse" in row else f"{row['ways']}w{row['shots']}s"


def figure(algo: str, row: dict[str, Any], dataset: str, result: dict[str, Any]) -> Figure | None:
    """What is printed for a row of a result in its mode, transductive or not; of several the one done most like it."""
    place = algo, dataset, cell_name(row)
    number = row["algo"].get("inner_steps") if "mse" in row else row["shots"] + 1  # of a table by steps, by instance
    here = (
        printed
        for printed in figures()
        if (printed.algo, printed.dataset, printed.cell) == place
        and printed.entry in (None, number)
        and printed.protocol.get("transductive", row["transductive"]) == row["transductive"]
    )
    return min(here, key=lambda printed: len(deviations(printed, row, result)), default=None)


def by_entry(algo: str, dataset: str, cell: str) -> dict[int, float]:
    """Inner steps -> the mse printed for them, or instance of a class -> the accuracy."""
    found = (printed for printed in figures() if (printed.algo, printed.dataset, printed.cell) == (algo, dataset, cell))
    return {printed.entry: printed.value for printed in found if printed.entry is not None}


def deviations(figure: Figure, row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Where the run is not what the paper did, of what decides a number: "8000 training steps, not 60000"."""
    theirs = figure.protocol
    queries = row["shots"] if theirs.get("queries") == "shots" else theirs.get("queries")
    checkpoint = "ensemble" if "ensemble" in row else result["checkpoint"]["name"]
    compared = (
        ("queries per class", row["queries"], None if "mse" in row else queries),
        ("training steps", result["training"]["steps"], theirs.get("steps")),
        ("checkpoint", checkpoint, theirs.get("checkpoint")),
        *((f"dataset.{key}", result["config"]["dataset"].get(key), printed) for key, printed in figure.data.items()),
    )
    return [f"{what} {ours}, not {printed}" for what, ours, printed in compared if printed not in (None, ours)]


def verdict(figure: Figure, ours: float, ci95: float, row: dict[str, Any], dataset: str) -> str:
    """reproduced: no further from the figure than the two intervals together, or than a stated number of points.

    That is 0.5 points at 5 ways and 1 point at 20 ways on Omniglot, 1 point elsewhere, and for mse a tenth of the
    figure. Else above or below; for mse better or worse. ours, ci95: in the units of the figure.
    """
    allowed = POINTS.get(row["ways"], ELSEWHERE) if dataset == "omniglot" else ELSEWHERE
    if "mse" in row:
        allowed = figure.value / 10
    if abs(ours - figure.value) <= max(allowed, ci95 + (figure.plus_minus or 0.0)):
        return "reproduced"
    if "mse" in row:
        return "better" if ours < figure.value else "worse"
    return "above" if ours > figure.value else "below"
