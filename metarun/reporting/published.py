"""What papers printed, and how far a run's protocol is theirs."""

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

POINTS = {5: 0.5, 20: 1.0}  # by ways: what counts as reproduced on Omniglot, in percent
ELSEWHERE = 1.0  # and on other datasets


@dataclass(frozen=True)
class Figure:
    """A number of a paper: mean accuracy in percent, or mse, of one cell of a table."""

    value: float
    plus_minus: float | None
    interval: str | None  # what the plus-minus is
    read: str  # primary, elsewhere, recalled
    where: str  # the table
    source: str  # key of `sources()`
    protocol: dict[str, Any]


@cache
def _papers() -> dict[str, Any]:
    text = files("metarun.reporting").joinpath("published.yaml").read_text(encoding="utf-8")
    return dict(yaml.safe_load(text))


def sources() -> dict[str, str]:
    """Key -> citation with its address."""
    return {key: f"{paper['citation']}, {paper['url']}" for key, paper in _papers().items()}


def figure(algo: str, row: dict[str, Any], dataset: str) -> Figure | None:
    """What is printed for a row of a result: the table of its mode, transductive or not."""
    cell = f"{row['shots']}s" if "mse" in row else f"{row['ways']}w{row['shots']}s"
    entry = row["algo"].get("inner_steps") if "mse" in row else row["shots"] + 1  # of a table by steps, by instance
    for source, paper in _papers().items():
        for table in paper["tables"]:
            found = table["figures"].get(algo, {}).get(cell)
            mode = table["protocol"].get("transductive", row["transductive"])
            if table["dataset"] == dataset and found is not None and mode == row["transductive"]:
                if isinstance(found, dict):
                    found = [found[entry]] if entry in found else None
                if found:
                    value, plus_minus = (*found, None)[:2]
                    about = (table.get("interval"), table["read"], table["where"], source, table["protocol"])
                    return Figure(value, plus_minus, *about)
    return None


def by_entry(algo: str, dataset: str, cell: str) -> dict[int, float]:
    """Inner steps -> the mse printed for them, or instance -> the accuracy."""
    tables = [table for paper in _papers().values() for table in paper["tables"] if table["dataset"] == dataset]
    found = (table["figures"].get(algo, {}).get(cell) for table in tables)
    return next((dict(steps) for steps in found if isinstance(steps, dict)), {})


def deviations(figure: Figure, row: dict[str, Any], result: dict[str, Any]) -> list[str]:
    """Where the run is not what the paper did, of what decides a number: "8000 training steps, not 60000"."""
    theirs = figure.protocol
    queries = row["shots"] if theirs.get("queries") == "shots" else theirs.get("queries")
    checkpoint = "ensemble" if "ensemble" in row else result["checkpoint"]["name"]
    compared = (
        ("queries per class", row["queries"], None if "mse" in row else queries),
        ("training steps", result["training"]["steps"], theirs.get("steps")),
        ("checkpoint", checkpoint, theirs.get("checkpoint")),
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
