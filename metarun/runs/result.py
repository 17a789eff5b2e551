"""The result of a run as a typed record, and its form as JSON. Never imports torch."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass, replace
from typing import Any, get_type_hints

from metarun.config.registry import dataset_traits, metric
from metarun.config.traits import Kind, Metric
from metarun.config.validate import convert
from metarun.config.words import count
from metarun.core.statistics import Estimate

UNTRAINED = "untrained"  # the row of the weights that training began from
BASELINES = ("pixels", "tf_idf", "tanimoto", "forest")  # rows of what needs no training
BESIDE = (UNTRAINED, *BASELINES)  # on some of the tasks


@dataclass(frozen=True)
class Row:
    """One row of the test: what was measured, on which tasks, with which settings."""

    metrics: dict[str, Estimate]
    ways: int
    shots: int
    queries: int
    tasks: int
    task_hash: str  # equal hashes mean the same tasks
    algo: dict[str, Any]
    transductive: bool  # whether the prediction for one query depends on the others
    ensemble: int = 1  # models whose probabilities were averaged
    seconds: float | None = None
    classes: int | None = None  # different ones in all tasks; None where tasks have none in common
    assays: int | None = None  # the same where a task is drawn from a list, as a whole
    ci95_over_classes: float | None = None  # or over assays, of the headline metric, see `core.statistics`
    dataset: dict[str, Any] = field(default_factory=dict)  # settings of the dataset that differ from training
    split: str = "test"
    dirichlet: float | None = None  # alpha of the classes' shares in the queries; None: as many of each
    data: dict[str, Any] | None = None  # the identity of another dataset than the run's
    at_chance: float | None = None  # the share of tasks whose figure is no better than guessing
    hardest: list[list[str | float]] = field(default_factory=list)  # [class, accuracy], from the lowest on
    confused: list[list[str | float]] = field(default_factory=list)  # [class, taken for, share], from the highest on

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Row":
        """Read a row. Raises TypeError, KeyError or ValueError for anything else."""
        metrics = {name: _read_estimate(value) for name, value in values.items() if _is_estimate(value)}
        return cls(metrics, **{name: value for name, value in values.items() if name not in metrics})

    def to_json(self) -> dict[str, Any]:
        """The metrics beside the settings, as `result.json` has them."""
        values = asdict(self)
        metrics: dict[str, Any] = values.pop("metrics")
        usual = {"ensemble": 1, "dataset": {}, "dirichlet": None}  # of which nothing is said
        return metrics | {name: value for name, value in values.items() if (name, value) not in usual.items()}

    def count_pool(self, kind: Kind) -> tuple[int | None, str]:
        """How many classes, or assays, the tasks were drawn from, and the word for one of them."""
        if self.assays is None:
            return self.classes, "class"
        return self.assays, "assay" if kind == "classification" else "source task"


@dataclass(frozen=True)
class Checkpoint:
    """The tested checkpoint; an ensemble has several steps."""

    name: str
    step: int | list[int]


@dataclass(frozen=True)
class Validation:
    """The best validation score, its step and the number of validation tasks."""

    best: float | None
    step: int | None
    tasks: int


@dataclass(frozen=True)
class Training:
    """What the training took."""

    steps: int
    seconds: float
    tasks_per_second: float
    peak_memory_mib: float | None = None  # of the first process
    workers: int = 1
    plan: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sets:
    """Sets of classes that were to hold the true one in 90 % of the cases, on test tasks."""

    threshold: float  # the probability from which on a class is in the set
    coverage: float  # the share of sets that hold the true class
    ci95: float | None
    ci95_over_classes: float | None
    size: float  # mean number of classes in a set
    tasks: int


@dataclass(frozen=True)
class Unknown:
    """How well the largest score tells queries of known classes from those of unknown ones, on test tasks."""

    auroc: float
    ci95: float | None
    classes: int  # unknown ones in a task
    tasks: int


@dataclass(frozen=True)
class Doubt:
    """What a single model's scores are worth; None where it cannot be known."""

    temperature: float | None = None
    sets: Sets | None = None
    unknown: Unknown | None = None


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The evaluation of a model: of a run's own checkpoint at its end, or again later with other settings."""

    headline: str  # the metric that the tasks are judged by
    kind: Kind
    rows: dict[str, Row]
    checkpoint: Checkpoint
    dataset: dict[str, Any]  # identity of the data
    warnings: list[str] = field(default_factory=list)  # why a figure may not mean what it seems to
    notes: list[str] = field(default_factory=list)  # what a person must know of the data
    temperature: float | None = None  # that logits are divided by, fitted on validation tasks
    sets: Sets | None = None
    unknown: Unknown | None = None

    @property
    def metric(self) -> Metric:
        """How the headline metric is read and shown."""
        return metric(self.headline)

    def estimate(self, row: str) -> Estimate:
        """The headline figure of a row."""
        return self.rows[row].metrics[self.headline]

    def to_json(self) -> dict[str, Any]:
        """The content of `result.json`."""
        values = asdict(replace(self, rows={}))
        del values["rows"], values["kind"]
        content: dict[str, Any] = replace_infinite(
            {"test": {name: row.to_json() for name, row in self.rows.items()}, **values}
        )
        return content


@dataclass(frozen=True, kw_only=True)
class Result(Evaluation):
    """Everything that a finished run tells."""

    validation: Validation | None
    training: Training
    config: dict[str, Any]
    choices: dict[str, Any]
    device: str
    versions: dict[str, str]
    commit: str | None
    files: dict[str, str] = field(default_factory=dict)  # setting -> hash of the file of weights that it names
    wall_seconds: float | None = None  # of the last sitting, with imports and data

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Result":
        """Read a result. Raises TypeError, KeyError, AttributeError, ValueError or ConfigError for anything else."""
        rest = dict(values)
        validation, sets, unknown = (rest.pop(name, None) for name in ("validation", "sets", "unknown"))
        result = cls(
            kind=dataset_traits(rest["config"]["dataset"]).kind,
            rows={name: Row.from_json(row) for name, row in rest.pop("test").items()},
            checkpoint=Checkpoint(**rest.pop("checkpoint")),
            validation=Validation(**validation) if validation else None,
            sets=Sets(**sets) if sets else None,
            unknown=Unknown(**unknown) if unknown else None,
            training=Training(**rest.pop("training")),
            **rest,
        )
        if problem := next(find_misfits(result), None):
            raise ValueError(problem)
        return result


def find_misfits(record: Any, key: str = "") -> Iterator[str]:
    """Say which values of a record, and of the records in it, are not of their declared type."""
    hints = get_type_hints(type(record))
    for name in (declared.name for declared in fields(record)):
        value, place = getattr(record, name), f"{key}.{name}" if key else name
        parts = value if isinstance(value, Mapping) else {}
        records = {place: value} if is_dataclass(value) else {f"{place}.{k}": v for k, v in parts.items()}
        if any(map(is_dataclass, records.values())):
            for inside, part in records.items():
                yield from find_misfits(part, inside)
        else:
            problems: list[str] = []
            finite = not isinstance(value, float) or math.isfinite(value)
            convert(value if finite else 0.0, hints[name], place, problems)  # a score may be nan
            yield from problems


def replace_infinite(value: Any) -> Any:
    """Replace what JSON has no number for, nan and infinity, by None, at any depth."""
    if isinstance(value, Mapping):
        return {key: replace_infinite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [replace_infinite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _is_estimate(value: Any) -> bool:
    return isinstance(value, dict) and value.keys() == {"mean", "ci95"}


def _read_estimate(value: Mapping[str, Any]) -> Estimate:
    """The reverse of `replace_infinite`, as far as a None is a number and not the lack of one."""

    def number(value: Any) -> Any:
        return list(map(number, value)) if isinstance(value, list) else math.nan if value is None else value

    return Estimate(number(value["mean"]), None if value["ci95"] is None else number(value["ci95"]))


def describe_mode(row: Row) -> str:
    """Say whether queries are predicted together, or in control how the policy acts; and of how many models."""
    if "greedy" in row.algo:
        mode = "greedy actions" if row.algo["greedy"] else "sampled actions"
    else:
        mode = "a rule" if row.algo.get("name") == "rule" else "transductive" if row.transductive else "inductive"
    return mode + (f", ensemble of {row.ensemble}" if row.ensemble > 1 else "")


def describe_task(kind: Kind, ways: int, shots: int, queries: int, dirichlet: float | None = None) -> str:
    """Describe a task: "5-way 1-shot, 15 queries per class", "5-way 1-shot, 75 queries of Dirichlet(2) shares", "10
    points", or "20 + 20 episodes", of which the first do not count.
    """
    if kind == "regression":
        return count(shots, "point")
    if kind == "control":
        return (f"{shots} + " if shots else "") + count(queries, "episode")
    asked = f"{count(queries, 'query')} per class"
    if dirichlet is not None:
        asked = f"{count(ways * queries, 'query')} of Dirichlet({dirichlet:g}) shares"
    return f"{ways}-way {shots}-shot, {asked}"


def describe_place(row: Row) -> str:
    """Say whose classes were tested, where it is not the test split of the run's own dataset: "on cub, all"."""
    name = "" if row.data is None else f"on {row.data['name']}"
    return ", ".join(filter(None, (name, "" if row.split == "test" else f"split {row.split}")))
