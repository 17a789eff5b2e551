"""What may be set, with the type of each setting. Never imports torch.

A setting's type is an ordinary annotation: `int`, `float`, `bool`, `str`, `Literal[...]`, `X | None`,
`list[X]`, `dict[str, X]`, a dataclass of settings, or one of the ranges named below.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal


@dataclass(frozen=True)
class Range:
    """A bound on a number: `low` itself is allowed unless `open`; `high` is always allowed."""

    low: float
    open: bool = False
    high: float | None = None

    def __str__(self) -> str:
        text = f"above {self.low:g}" if self.open else f"at least {self.low:g}"
        return text + (f" and at most {self.high}" if self.high is not None else "")

    def holds(self, value: float) -> bool:
        """Return whether the value is within the bounds."""
        above = value > self.low if self.open else value >= self.low
        return above and (self.high is None or value <= self.high)


Count = Annotated[int, Range(1)]
Whole = Annotated[int, Range(0)]
Seed = Annotated[int, Range(0, high=2**63 - 1)]  # what PyTorch's generators take
Positive = Annotated[float, Range(0, open=True)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, open=True, high=1)]
Fraction = Annotated[float, Range(0, high=1)]
Norm = Literal["batch", "running", "per_query"]


@dataclass(frozen=True)
class TrainerSettings:
    """How meta-training runs; the same for every algorithm."""

    steps: Count
    tasks_per_step: Count
    tasks_per_chunk: Count | None  # tasks differentiated at once; null: all of a step
    execution: Literal["auto", "vmap", "loop"]
    workers: Count | Literal["auto"]  # processes on the CPU that share the tasks of a step
    compile: bool
    cuda_graph: bool  # record the step once and launch it as one, on a GPU
    precision: Literal["float32", "tf32", "bfloat16"]
    channels_last: bool | Literal["auto"]  # memory order of convolution weights
    clip_norm: Positive | dict[str, Positive] | None  # of the whole gradient, or per component of theta
    clip_value: Positive | dict[str, Positive] | None
    log_every: Count
    eval_every: Count
    patience: Count | None  # validations without improvement after which training stops
    keep_best: Count  # checkpoints to keep, the best by validation, for an ensemble
    attack_radius: NonNegative = 0.0  # largest change of a query's values in 0..1, by an attack; 0: none
    attack_step: Positive = 0.00784
    attack_steps: Count = 7


@dataclass(frozen=True)
class EvalSettings:
    """How meta-validation and meta-test run."""

    tasks: Count
    val_tasks: Count
    seed: Seed
    ways: int  # from 2 on, or from 1 on where tasks have no classes: metarun.config.load
    shots: Whole
    queries: Count
    tasks_per_chunk: Count
    statistics_tasks: Count  # training tasks that running statistics of norm layers are averaged over
    checkpoint: str
    algo: dict[str, Any]  # settings of the algorithm that differ at meta-test; or another algorithm's, by name
    variants: dict[str, dict[str, Any]]  # name -> settings of this table that differ
    dataset: dict[str, Any] = field(default_factory=dict)  # settings of the dataset that differ; or another, by name
    split: Literal["train", "val", "test", "all"] = "test"  # whose classes are tested
    dirichlet: Positive | None = None  # alpha of the classes' shares in the queries; null: as many of each
    probes: list[str] = field(default_factory=list)  # what a run is looked at by at its end
    probe_tasks: Count = 100  # test tasks of a probe


@dataclass(frozen=True)
class Settings:
    """The whole of a composed configuration."""

    algo: dict[str, Any]
    dataset: dict[str, Any]
    backbone: dict[str, Any]
    optimizer: dict[str, Any]
    schedule: dict[str, Any]
    logger: dict[str, Any]
    trainer: TrainerSettings
    eval: EvalSettings
    ways: int  # from 2 on, or from 1 on where tasks have no classes: metarun.config.load
    shots: Whole
    queries: Count
    device: str
    seed: Seed
    data_dir: str | None
    encoder: dict[str, Any] | None = None  # None, and absent from a configuration: networks read the data itself
    init_from: str | None = None  # a checkpoint of the same method and network; runs of before do not have the setting


def apply_test_changes(trained: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return an algorithm's settings with those that differ at meta-test; another `name` brings all its own."""
    return {**changes} if changes.get("name", trained["name"]) != trained["name"] else {**trained, **changes}


def is_other_dataset(own: Mapping[str, Any], changes: Mapping[str, Any]) -> bool:
    """Whether the changes name another dataset, or another collection of the same kind."""
    return any(changes.get(key, own.get(key)) != own.get(key) for key in ("name", "collection"))


def apply_data_changes(own: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a dataset's settings with those that differ at meta-test; another dataset brings all its own."""
    return {**changes} if is_other_dataset(own, changes) else {**own, **changes}
