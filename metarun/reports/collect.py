"""Finished runs as reports see them: read from their folders, grouped by setting, one cell per row of the test."""

import csv
import json
import logging
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from metarun.config.errors import ConfigError
from metarun.config.load import identity, is_published
from metarun.config.traits import HEADLINES, Metric
from metarun.core.statistics import Estimate, Scores, over_classes
from metarun.reports.published import Figure, Setup, find_figure, look_up
from metarun.reports.statistics import Summary, summarise
from metarun.runs.folder import RunFolder
from metarun.runs.result import BESIDE, Result, Row, describe_mode, describe_task

NAMED = 3  # settings in a name
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the former takes a tenth of the time
PUBLISHED_ROWS = ("test", "test_inductive", "20way", "5shot")  # rows of an experiment that follow a paper's protocol
MACHINE = ("device=", "data_dir=", "dataset.path=", "dataset.placement=", "hydra")  # overrides about the machine

Curve = list[tuple[float, float]]

say = logging.getLogger(__name__)


@dataclass(frozen=True)
class Run:
    """A run's folder and its result."""

    folder: Path
    result: Result

    @classmethod
    def read(cls, folder: Path) -> "Run":
        """Read a finished run. Raises ConfigError if a file of it is damaged, or is not the result of a run."""
        result = RunFolder(folder).result()
        if result is None:
            raise ConfigError(f"{folder} is not the folder of a finished run: it has no result.json")
        run = cls(folder, result)
        try:
            _ = run.algo, run.dataset, run.seed, run.setting, result.metric, [run.estimate(row) for row in result.rows]
        except (KeyError, TypeError, ValueError, AttributeError, ConfigError) as error:
            raise ConfigError(f"{folder / 'result.json'} is damaged: {error!r}") from error
        for row in result.rows:
            run.read_scores(row)
        run.read_curves()
        _ = run.findings
        return run

    @property
    def algo(self) -> str:
        return str(self.result.choices["algo"])

    @property
    def collection(self) -> str:
        own = self.result.config["dataset"]
        return str(own.get("collection", own["name"]))

    @property
    def encoder(self) -> str | None:
        """The name of the encoder; None if the network read the data itself."""
        chosen = self.result.config.get("encoder")
        return str(chosen["name"]) if chosen else None

    @property
    def dataset(self) -> str:
        """The data; through an encoder it is other data, which nothing else is compared with."""
        return f"{self.collection} through {self.encoder}" if self.encoder else self.collection

    @property
    def name(self) -> str:
        """The name of the experiment, or of the method if there was none."""
        return str(self.result.choices.get("experiment") or self.algo)

    @property
    def seed(self) -> int:
        return int(self.result.config["seed"])

    @cached_property
    def setting(self) -> str:
        """Everything that the numbers depend on, except the seed."""
        return json.dumps({**identity(self.result.config), "seed": None}, sort_keys=True)

    @property
    def command(self) -> str | None:
        """The command that was typed, without overrides about the machine; None if the folder does not have it.

        The path of a user's own data belongs to the command, absolute, and so does the folder of own YAML files.
        """
        overrides = _read_yaml(self.folder / ".hydra" / "overrides.yaml")
        if not isinstance(overrides, list):
            return None
        words = [text for word in overrides if not (text := str(word).removeprefix("++")).startswith(MACHINE)]
        dataset = self.result.config["dataset"]
        if dataset.get("path") is not None and not is_published(dataset):
            words.append(f"dataset.path={_quote(dataset['path'])}")
        sources = look_up(_read_yaml(self.folder / ".hydra" / "hydra.yaml"), "hydra.runtime.config_sources") or []
        folders = [f"--config-dir={source['path']}" for source in sources if source["provider"] == "command-line"]
        return shlex.join(["metarun", *folders, *words])

    def estimate(self, row: str) -> tuple[float, float | None]:
        """Mean and 95 % interval of the headline metric. Raises TypeError if they are not numbers."""
        found = self.result.estimate(row)
        if isinstance(found.mean, list) or isinstance(found.ci95, list):
            raise TypeError(f"{row}: the headline metric {self.result.headline} is a list")
        return float(found.mean), None if found.ci95 is None else float(found.ci95)

    def read_scores(self, row: str) -> Scores | None:
        """The headline metric of each test task, [tasks]; None if the folder does not have it."""
        return RunFolder(self.folder).read_scores(row, self.result.headline)

    def read_classes(self, row: str) -> NDArray[np.int64] | None:
        """The classes or the assay of each test task, [tasks, N]; None if the folder does not have them."""
        return RunFolder(self.folder).read_classes(row)

    def read_curves(self) -> dict[str, Curve]:
        """The logged headline metric: split -> (step, shown number); empty if the folder does not have it.

        Raises ConfigError if the file is damaged.
        """
        file = self.folder / "metrics.csv"
        curves: dict[str, Curve] = {}
        if file.is_file():
            name, scale = self.result.headline, self.result.metric.scale
            try:
                with file.open(encoding="utf-8", newline="") as lines:
                    for line in csv.DictReader(lines):
                        if line.get(name):
                            point = float(line["step"]), scale * float(line[name])
                            curves.setdefault(line["split"], []).append(point)
            except (ValueError, KeyError, TypeError, OSError, csv.Error) as error:
                raise ConfigError(f"{file} is damaged ({error!r}): delete it to go on without it") from error
        return curves

    @cached_property
    def findings(self) -> dict[str, dict[str, Any]]:
        """Probe -> what it found. Raises ConfigError if a file is damaged."""
        found = {}
        for file in sorted((self.folder / "probes").glob("*.json")):
            try:
                facts = json.loads(file.read_text(encoding="utf-8"))
                _ = facts["table"][0], facts["score"] and facts["score"]["mean"], facts["higher_is_better"]
                _ = facts["ways"], facts["shots"], facts["queries"], facts["tasks"]
            except (ValueError, KeyError, TypeError, IndexError, OSError) as error:
                raise ConfigError(f"{file} is damaged ({error!r}): delete it to go on without it") from error
            found[file.stem] = facts
        return found


@dataclass(frozen=True)
class Cell:
    """One row of the test of one setting, over its seeds."""

    runs: tuple[Run, ...]
    row: str
    name: str  # name of the runs; where several settings share it, followed by what differs

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def result(self) -> Result:
        return self.first.result

    @property
    def is_beside(self) -> bool:
        """Whether nothing was trained: the weights are those from which training began, or it is a baseline."""
        return self.row in BESIDE

    @property
    def test(self) -> Row:
        return self.result.rows[self.row]

    @cached_property
    def metric(self) -> Metric:
        return self.result.metric

    @property
    def headline(self) -> str:
        return self.result.headline

    @cached_property
    def setup(self) -> Setup:
        test, result = self.test, self.result
        return Setup(
            algo=self.first.algo,
            dataset=self.first.dataset + self._elsewhere,
            config=result.config,
            metric=result.headline,
            kind=result.kind,
            ways=test.ways,
            shots=test.shots,
            queries=test.queries,
            transductive=test.transductive,
            inner_steps=test.algo.get("inner_steps"),
            steps=result.training.steps,
            checkpoint="ensemble" if test.ensemble > 1 else result.checkpoint.name,
        )

    @property
    def task(self) -> str:
        """The kind of task: "5-way 1-shot, 15 queries per class", "10 points" for regression, "10 episodes" of control.

        Of methods that are told each label after they were asked for it, the figure is that of one instance.
        """
        if "instance" in self.vectors:
            asked = self.test.shots + self.test.queries
            return f"{self.test.ways} classes, instance {self.test.shots + 1} of {asked}, labels told afterwards"
        test = self.test
        return describe_task(self.result.kind, test.ways, test.shots, test.queries, test.dirichlet)

    @property
    def mode(self) -> str:
        return describe_mode(self.test)

    @property
    def dataset(self) -> str:
        """The dataset with its split: "omniglot (vinyals)"; of a test elsewhere also where: "omniglot -> cub"."""
        split = self.result.config["dataset"].get("split")
        own = f"{self.first.dataset} ({split})" if split else self.first.dataset
        return own + self._elsewhere

    @property
    def _elsewhere(self) -> str:
        """What was tested, if it is not the test split of the run's own dataset: " -> cub, split all"."""
        tested = None if self.test.data is None else str(self.test.data.get("name"))
        place = ", ".join(filter(None, (tested, "" if self.test.split == "test" else f"split {self.test.split}")))
        return f" -> {place}" if place else ""

    @property
    def score(self) -> str:
        """The result as a person reads it: "98.12 ± 0.25 %". A figure without the name of a metric is an accuracy.

        ‡ marks one with a warning.
        """
        name = "" if self.headline == HEADLINES["classification"] else f"{self.headline} "
        mark = " ‡" if self.warnings else ""
        return name + self.metric.shown(self.summary.mean, self.summary.over_tasks) + mark

    @property
    def vectors(self) -> dict[str, Estimate]:
        """The headline metric by inner step or by instance, if it was measured: "step" or "instance" -> estimates."""
        prefix = f"{self.headline}_by_"
        return {
            name.removeprefix(prefix): value for name, value in self.test.metrics.items() if name.startswith(prefix)
        }

    @property
    def same_tasks(self) -> bool:
        """Whether all seeds were tested on the same tasks."""
        return len({run.result.rows[self.row].task_hash for run in self.runs}) == 1

    @cached_property
    def _scores(self) -> list[Scores] | None:
        """[tasks] of each seed; None if a run has kept none, or the tasks differ."""
        found = [run.read_scores(self.row) for run in self.runs] if self.same_tasks else [None]
        whole = [scores for scores in found if scores is not None]
        return whole if len(whole) == len(found) else None

    @cached_property
    def scores(self) -> Scores | None:
        """The mean over seeds for each task, [tasks]; None if a run has kept none, or the tasks differ."""
        return None if self._scores is None else np.stack(self._scores).mean(0)

    @cached_property
    def summary(self) -> Summary:
        """From the scores of the tasks; if they were not kept, from each run's mean and the widest interval."""
        if self._scores is not None:
            return summarise(self._scores)
        means, intervals = zip(*(run.estimate(self.row) for run in self.runs))
        spread = summarise([np.array([mean]) for mean in means]).over_seeds if len(means) > 1 else None
        widest = max((interval for interval in intervals if interval is not None), default=None)
        return Summary(float(np.mean(means)), widest, spread, len(means), self.test.tasks)

    @cached_property
    def over_classes(self) -> float | None:
        """Half a 95 % interval over other classes, of the mean over seeds; of what was not kept, the widest of a run's.

        None where tasks share no classes, or nothing is known of others.
        """
        found = [run.result.rows[self.row].ci95_over_classes for run in self.runs]
        widest = max((interval for interval in found if interval is not None), default=None)
        classes = self.first.read_classes(self.row)
        if classes is None or self.scores is None:
            return widest
        return over_classes(self.scores, classes)

    @property
    def warnings(self) -> list[str]:
        """The warnings of the runs about this row or their training, each once."""
        found = (text for run in self.runs for text in run.result.warnings)
        return list(dict.fromkeys(text for text in found if text.partition(":")[0] in (self.row, "training")))

    @cached_property
    def published(self) -> Figure | None:
        """The published figure. Only rows of an experiment that follow a paper's protocol have one."""
        balanced = self.test.dirichlet is None
        follows = balanced and self.row in PUBLISHED_ROWS and self.result.choices.get("experiment")
        return find_figure(self.setup) if follows else None

    @property
    def verdict(self) -> str:
        if self.published is None:
            return ""
        found, scale, steps = self.summary, self.metric.scale, self.setup.steps
        return self.published.judge(
            scale * found.mean, scale * (found.over_tasks or 0), found.tasks, steps, self.metric
        )

    @cached_property
    def deviations(self) -> list[str]:
        """Where the run differs from the protocol of the published figure."""
        return self.published.deviations(self.setup) if self.published else []


def _read_yaml(file: Path) -> Any:
    """The content of a YAML file; None if it is not there, or damaged."""
    try:
        return yaml.load(file.read_text(encoding="utf-8"), LOADER)
    except (OSError, ValueError, yaml.YAMLError):
        return None


def _quote(value: str) -> str:
    """A value as Hydra's grammar reads it."""
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return value if re.fullmatch(r"[\w./~-]+", value) else f"'{escaped}'"


def read_runs(folders: Iterable[Path], skipped: list[str] | None = None) -> list[Run]:
    """Read every finished run below the folders, ordered by content. Results of `metarun evaluate` are left out.

    Logs one line for each run that cannot be read, and adds it to `skipped`. Raises ConfigError if no run can be read.
    """
    places: dict[Path, Path] = {}
    for folder in folders:
        for file in sorted(folder.rglob("result.json")):
            if "tests" not in file.relative_to(folder).parts:
                places.setdefault(file.parent.resolve(), file.parent)
    runs = []
    for place in places.values():
        try:
            runs.append(Run.read(place))
        except ConfigError as error:
            reason = " ".join(str(error).split())
            say.warning("skipped: %s", reason)
            if skipped is not None:
                skipped.append(reason)
    if not runs:
        problem = "no result.json can be read" if places else "there is no result.json"
        raise ConfigError(f"no finished run in {', '.join(map(str, folders))}: {problem}")
    return sorted(runs, key=lambda run: (run.name, run.dataset, run.setting, run.seed, str(run.result.commit)))


def make_cells(runs: Iterable[Run]) -> Iterator[Cell]:
    """A cell for every row of every setting. Of runs that differ in nothing but the commit, the last one counts."""
    settings: dict[tuple[str, str], dict[int, Run]] = {}
    for run in runs:
        settings.setdefault((run.name, run.setting), {})[run.seed] = run
    groups = [tuple(seeds.values()) for seeds in settings.values()]
    for group, name in zip(groups, _name_settings([group[0] for group in groups])):
        for row in group[0].result.rows:
            yield Cell(tuple(run for run in group if row in run.result.rows), row, name)


def _name_settings(settings: Iterable[Run]) -> Iterator[str]:
    """A name for each setting. Neighbours with the same name get what differs among them appended, or a number."""
    for _, group in groupby(settings, key=lambda run: (run.name, run.dataset)):
        sharing = list(group)
        for number, (run, values) in enumerate(zip(sharing, find_differences(sharing)), start=1):
            apart = [f"{key}={text}" for key, text in values.items()] if len(values) <= NAMED else [f"#{number}"]
            yield " ".join([run.name, *apart])


def find_differences(settings: Sequence[Run]) -> list[dict[str, str]]:
    """The values of each setting that are not the same in all: `optimizer.lr` -> `0.001`."""
    found = [dict(_flatten(json.loads(run.setting))) for run in settings]
    keys = sorted({key for values in found for key in values})
    apart = [key for key in keys if len({values.get(key) for values in found}) > 1]
    return [{key: values[key] for key in apart if key in values} for values in found]


def _flatten(values: dict[str, Any], above: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value if isinstance(value, str) else json.dumps(value)
