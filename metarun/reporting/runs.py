"""Finished runs as reports see them: grouped by setting, each with its test rows."""

import csv
import json
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metarun.composing import identity
from metarun.errors import ConfigError
from metarun.reporting.published import Figure, deviations, figure, verdict
from metarun.reporting.statistics import Summary, summary


@dataclass(frozen=True)
class Run:
    """A run's folder and its `result.json`."""

    folder: Path
    result: dict[str, Any]

    @property
    def algo(self) -> str:
        return str(self.result["choices"]["algo"])

    @property
    def dataset(self) -> str:
        own = self.result["config"]["dataset"]
        return str(own.get("collection", own["name"]))

    @property
    def name(self) -> str:
        """The experiment's, or where there was none the method's."""
        return str(self.result["choices"].get("experiment") or self.algo)

    @property
    def seed(self) -> int:
        return int(self.result["config"]["seed"])

    @cached_property
    def setting(self) -> str:
        """All that the numbers depend on, but for the seed."""
        return json.dumps({**identity(self.result["config"]), "seed": None}, sort_keys=True)

    @property
    def command(self) -> str | None:
        """As typed, without what only says where things are."""
        file = self.folder / ".hydra" / "overrides.yaml"
        if not file.is_file():
            return None
        typed = [str(text).lstrip("+") for text in yaml.safe_load(file.read_text(encoding="utf-8"))]
        elsewhere = ("device=", "data_dir=", "dataset.path=", "dataset.placement=", "hydra")
        return shlex.join(["metarun", *(text for text in typed if not text.startswith(elsewhere))])

    def headline(self, row: str) -> str:
        """The name of the figure that the tasks are judged by: of what was measured the one that is a single number."""
        test = self.result["test"][row]
        measured = (name for name, value in test.items() if isinstance(value, dict) and "ci95" in value)
        return next(name for name in measured if not isinstance(test[name]["mean"], list))

    def scores(self, row: str) -> np.ndarray | None:
        """[tasks], where the folder has them."""
        file = self.folder / "scores" / f"{row}.csv"
        if not file.is_file():
            return None
        with file.open(encoding="utf-8", newline="") as lines:
            return np.array([float(line[self.headline(row)]) for line in csv.DictReader(lines)])


@dataclass(frozen=True)
class Cell:
    """One row of the test of one setting, over its seeds."""

    runs: tuple[Run, ...]
    row: str

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def test(self) -> dict[str, Any]:
        return dict(self.first.result["test"][self.row])

    @property
    def task(self) -> str:
        """As "5w1s", or of a regression "5s"."""
        return f"{self.test['shots']}s" if "mse" in self.test else f"{self.test['ways']}w{self.test['shots']}s"

    @property
    def mode(self) -> str:
        kind = "transductive" if self.test["transductive"] else "inductive"
        return kind + (f", ensemble of {self.test['ensemble']}" if "ensemble" in self.test else "")

    @cached_property
    def scores(self) -> np.ndarray | None:
        """[tasks], the mean over seeds at each; None where a run has kept none, or tasks differ."""
        found = [run.scores(self.row) for run in self.runs]
        whole = [scores for scores in found if scores is not None]
        return np.stack(whole).mean(0) if len(whole) == len(found) and self.same_tasks else None

    @property
    def same_tasks(self) -> bool:
        return len({run.result["test"][self.row]["task_hash"] for run in self.runs}) == 1

    @cached_property
    def summary(self) -> Summary:
        """From the tasks' scores, or where they were not kept from each run's mean and interval."""
        found = [run.scores(self.row) for run in self.runs]
        whole = [scores for scores in found if scores is not None]
        if len(whole) == len(found) and self.same_tasks:
            return summary(whole)
        entries = [run.result["test"][self.row] for run in self.runs]
        means = np.array([entry[self.first.headline(self.row)]["mean"] for entry in entries])
        widest = max(entry[self.first.headline(self.row)]["ci95"] for entry in entries)
        spread = summary([np.array([mean]) for mean in means]).over_seeds if len(means) > 1 else None
        return Summary(float(means.mean()), widest, spread, len(means), entries[0]["tasks"])

    @property
    def unit(self) -> float:
        """Accuracies are told in percent."""
        return 100.0 if self.first.headline(self.row) == "accuracy" else 1.0

    @cached_property
    def published(self) -> Figure | None:
        """Only an experiment's own test follows a paper's, and what it names `20way`."""
        theirs = self.row in ("test", "test_inductive", "20way") and self.first.result["choices"].get("experiment")
        return figure(self.first.algo, self.test, self.first.dataset) if theirs else None

    @property
    def verdict(self) -> str:
        if self.published is None:
            return ""
        ours = self.unit * self.summary.mean, self.unit * self.summary.over_tasks
        return verdict(self.published, *ours, self.test, self.first.dataset)

    @property
    def deviations(self) -> list[str]:
        return deviations(self.published, self.test, self.first.result) if self.published else []


def found(folders: Iterable[Path]) -> list[Run]:
    """Every finished run below the folders, in an order of content; what `metarun evaluate` adds is left out.

    Raises ConfigError where there is none.
    """
    files: dict[Path, None] = {}
    for folder in folders:
        for file in sorted(folder.rglob("result.json")):
            if "tests" not in file.relative_to(folder).parts:
                files[file.resolve()] = None
    runs = [Run(file.parent, json.loads(file.read_text(encoding="utf-8"))) for file in files]
    if not runs:
        raise ConfigError(f"no finished run in {', '.join(map(str, folders))}: there is no result.json")
    return sorted(runs, key=lambda run: (run.name, run.dataset, run.setting, run.seed))


def cells(runs: Iterable[Run]) -> Iterator[Cell]:
    """One for every row of every setting."""
    settings: dict[str, list[Run]] = {}
    for run in runs:
        settings.setdefault(run.name + run.setting, []).append(run)
    for group in settings.values():
        for row in group[0].result["test"]:
            yield Cell(tuple(run for run in group if row in run.result["test"]), row)
