"""Finished runs as reports see them: grouped by setting, each with its test rows."""

import csv
import json
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from metarun.config.errors import ConfigError
from metarun.config.load import identity
from metarun.reports.published import Figure, cell_name, deviations, figure, verdict
from metarun.reports.statistics import Summary, summary

TOLD = 3  # settings in a name
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former, where it is, takes a tenth of the time


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
        typed = [str(text).lstrip("+") for text in yaml.load(file.read_text(encoding="utf-8"), LOADER)]
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
            column = next(csv.reader(lines)).index(self.headline(row))
            return np.loadtxt(lines, delimiter=",", usecols=column, ndmin=1)

    def course(self, metric: str, unit: float) -> dict[str, list[tuple[float, float]]]:
        """Of each split that was logged, (step, value times unit), where the folder has them."""
        file = self.folder / "metrics.csv"
        found: dict[str, list[tuple[float, float]]] = {}
        if file.is_file():
            with file.open(encoding="utf-8", newline="") as lines:
                for line in csv.DictReader(lines):
                    if line.get(metric):
                        found.setdefault(line["split"], []).append((float(line["step"]), unit * float(line[metric])))
        return found


@dataclass(frozen=True)
class Cell:
    """One row of the test of one setting, over its seeds."""

    runs: tuple[Run, ...]
    row: str
    name: str  # the runs', and where several settings share one, what sets this one apart

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def test(self) -> dict[str, Any]:
        return dict(self.first.result["test"][self.row])

    @property
    def task(self) -> str:
        """As "5w1s", or of a regression "5s"."""
        return cell_name(self.test)

    @property
    def mode(self) -> str:
        kind = "transductive" if self.test["transductive"] else "inductive"
        return kind + (f", ensemble of {self.test['ensemble']}" if "ensemble" in self.test else "")

    @cached_property
    def _scores(self) -> list[np.ndarray] | None:
        """[tasks] of each seed; None where a run has kept none, or tasks differ."""
        found = [run.scores(self.row) for run in self.runs] if self.same_tasks else [None]
        whole = [scores for scores in found if scores is not None]
        return whole if len(whole) == len(found) else None

    @cached_property
    def scores(self) -> np.ndarray | None:
        """[tasks], the mean over seeds at each."""
        return None if self._scores is None else np.stack(self._scores).mean(0)

    @property
    def same_tasks(self) -> bool:
        return len({run.result["test"][self.row]["task_hash"] for run in self.runs}) == 1

    @cached_property
    def summary(self) -> Summary:
        """From the tasks' scores, or where they were not kept from each run's mean and interval."""
        if self._scores is not None:
            return summary(self._scores)
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
        return figure(self.first.algo, self.test, self.first.dataset, self.first.result) if theirs else None

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
    return sorted(runs, key=lambda run: (run.name, run.dataset, run.setting, run.seed, str(run.result["commit"])))


def cells(runs: Iterable[Run]) -> Iterator[Cell]:
    """One for every row of every setting. Of runs that differ in nothing but the commit one counts, the last."""
    settings: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        settings.setdefault((run.name, run.setting), {})[run.seed] = run
    groups = [tuple(seeds.values()) for seeds in settings.values()]
    for group, name in zip(groups, names([group[0] for group in groups])):
        for row in group[0].result["test"]:
            yield Cell(tuple(run for run in group if row in run.result["test"]), row, name)


def names(settings: Iterable[Run]) -> Iterator[str]:
    """Of each setting one of its own: where neighbours share a name, with what differs among them, or a number."""
    for _, group in groupby(settings, key=lambda run: (run.name, run.dataset)):
        sharing = list(group)
        for number, (run, apart) in enumerate(zip(sharing, differing(sharing)), start=1):
            told = [f"{key}={text}" for key, text in apart.items()] if len(apart) <= TOLD else [f"#{number}"]
            yield " ".join([run.name, *told])


def differing(settings: Sequence[Run]) -> list[dict[str, str]]:
    """Of each setting the values that are not the same in all: key -> value, as `optimizer.lr` -> `0.001`."""
    found = [dict(flat(json.loads(run.setting))) for run in settings]
    keys = sorted({key for values in found for key in values})
    apart = [key for key in keys if len({values.get(key) for values in found}) > 1]
    return [{key: values[key] for key in apart if key in values} for values in found]


def flat(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value)
