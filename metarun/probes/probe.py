"""What a probe is: a look at a trained model that needs no code in a method's file.

A probe changes the tasks of a test (`Changed`), or replaces what is measured on each of them by an algorithm of its own
around the method (`Subject.measure`). Either way the tasks are those that the method is tested on, and `evaluate`
scores them, so that figures of a probe are paired with the clean ones.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import declaration
from metarun.config.schema import EvalSettings
from metarun.config.traits import ProbeTraits
from metarun.core.batch import Execution
from metarun.core.norm import use_statistics
from metarun.core.objectives import adapt_to, headline_metric, predict_queries
from metarun.core.seeding import generator_for
from metarun.core.statistics import Estimate, over_tasks
from metarun.core.types import Algorithm, Episode, FewShotAlgorithm, Metrics, Split, TaskSource, TaskSpec, Theta
from metarun.datasets.preprocessing import Pictures
from metarun.engine.build import Experiment
from metarun.engine.evaluate import Model, Scores, Tester, is_transductive

Change = Callable[[Episode, torch.Generator], Episode]  # of a batch of tasks [T, ...], with all chance from there
Figures = dict[str, Any]  # a line of a table: name -> text, number, or an Estimate


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What a probe found."""

    table: Sequence[Figures]  # lines with the same names
    draw: Callable[[Any], None]  # on a Matplotlib figure
    score: Estimate | None = None  # by which methods are ranked
    scored: str = ""  # what the score is, in words
    higher_is_better: bool = True
    notes: Sequence[str] = ()  # what a person must know before relying on the figures


class Probe(Protocol):
    """A look at a trained model. Its fields are settings, whose values stand in `configs/probe/<name>.yaml`."""

    def run(self, subject: "Subject") -> Finding:
        """Raises ConfigError if this model cannot be looked at so."""
        ...


@dataclass(frozen=True)
class Changed:
    """Another source's tasks, changed.

    The change has a generator of its own, which follows from that of the tasks: the same tasks are changed by the same
    chance at every strength, and a change of strength zero leaves them bit for bit.
    """

    source: TaskSource
    change: Change

    @property
    def spec(self) -> TaskSpec:
        return self.source.spec

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        chance = generator_for("change", generator.initial_seed())
        return self.change(self.source.sample(num_tasks, generator), chance)


@dataclass(frozen=True)
class Watched:
    """A method of which `look` measures what it wants on each task."""

    algo: FewShotAlgorithm
    look: Callable[[FewShotAlgorithm, Theta, Episode], Metrics]

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return self.look(self.algo, theta, episode)


@dataclass(frozen=True)
class Subject:
    """A trained model, the way it is tested, and the tasks to probe it on."""

    experiment: Experiment
    model: Model
    execution: Execution
    temperature: float | None = None  # of the run, fitted on validation tasks

    @cached_property
    def row(self) -> EvalSettings:
        """The settings of the run's own test, with as many tasks as a probe takes."""
        test = self.experiment.plan_rows()["test"]
        return replace(test, tasks=test.probe_tasks)

    @property
    def inductive(self) -> EvalSettings:
        """The row by which `metarun predict` adapts: each query as if it were the only one."""
        return replace(self.experiment.plan_rows().get("test_inductive", self.row), tasks=self.row.tasks)

    @cached_property
    def theta(self) -> Theta:
        """The model's weights, for themselves."""
        return {c: {n: p.detach() for n, p in params.items()} for c, params in self.model.theta.items()}

    @property
    def spec(self) -> TaskSpec:
        return self.experiment.source.spec

    @property
    def headline(self) -> str:
        return headline_metric(self.spec)

    @property
    def pictures(self) -> Pictures | None:
        """How pictures become the network's inputs; None where inputs are no pictures."""
        return self.experiment.pictures

    def is_transductive(self, row: EvalSettings) -> bool:
        return is_transductive(row, self.experiment.has_norm)

    def build_tester(self, row: EvalSettings | None = None, split: Split = "test") -> Tester:
        """The tester of a row, by default of the run's own test. Raises ConfigError."""
        return self.experiment.build_tester(row or self.row, split)

    def score(self, tester: Tester) -> Scores:
        """Score the model as any test does."""
        return tester.score([self.model], tester.row.tasks, self.execution)

    def score_changed(self, tester: Tester, change: Change) -> Tensor:
        """The headline metric of each of the tester's tasks after a change: [tasks]."""
        return self.score(replace(tester, source=Changed(tester.source, change))).per_task[self.headline]

    def measure(
        self,
        look: Callable[[FewShotAlgorithm, Theta, Episode], Metrics],
        tester: Tester | None = None,
        execution: Execution | None = None,
    ) -> Scores:
        """Measure what `look` wants of the method, theta and each task."""
        tester = tester or self.build_tester()
        watched = Watched(cast(FewShotAlgorithm, tester.algo), look)
        watching = replace(tester, algo=cast(Algorithm, watched))
        return watching.score([self.model], tester.row.tasks, execution or self.execution)

    def draw_tasks(self, count: int, tester: Tester) -> Episode:
        """The first tasks of a test."""
        tasks: Episode = tester.source.sample(count, generator_for(tester.row.seed, tester.split, 0))
        return tasks

    def build_algorithm(self, tester: Tester) -> FewShotAlgorithm:
        """A tester's method, whose norm layers use the model's statistics if the row says so."""
        algo, backbone = copy.deepcopy((tester.algo, tester.backbone))
        use_statistics(backbone, self.model.statistics if tester.row.algo.get("norm") == "running" else {})
        return cast(FewShotAlgorithm, algo)


def answer(algo: FewShotAlgorithm, theta: Theta, episode: Episode) -> Tensor:
    """Adapt to a task's support and predict its queries."""
    return predict_queries(algo, theta, adapt_to(algo, theta, episode), episode)


def find_misfit(name: str, experiment: Experiment) -> str | None:
    """Say why a probe does not fit a run, as far as it is known before there is a model; None if it fits."""
    traits: ProbeTraits = declaration("probe", name).traits
    spec = experiment.source.spec
    if spec.kind not in traits.kinds:
        return f"probe {name} is for {' and '.join(traits.kinds)}, and this run is of {spec.kind}"
    if traits.pictures and experiment.pictures is None:
        return f"probe {name} changes pictures, and the inputs of this run are none"
    if spec.ragged and not traits.ragged:
        return f"probe {name} takes tasks of one size, and those of this run differ"
    return None


def estimate(values: Tensor | NDArray[np.float64]) -> Estimate:
    """The mean of one number per task, with its interval: [tasks]."""
    array = values.double().numpy() if isinstance(values, Tensor) else values
    half = over_tasks(array)
    return Estimate(float(array.mean()), None if half is None else float(half))


def compare(clean: Tensor, changed: Tensor) -> Estimate:
    """How much is lost from clean to changed tasks, with a paired interval: [tasks] each."""
    return estimate(clean.double() - changed.double())


def require(condition: bool, message: str) -> None:
    """Raise ConfigError unless the condition holds."""
    if not condition:
        raise ConfigError(message)


def mean_of(found: Mapping[Any, Tensor]) -> Estimate:
    """The mean over tasks of a mean over several scores of each: name -> [tasks]."""
    return estimate(torch.stack([scores.double() for scores in found.values()]).mean(0))
