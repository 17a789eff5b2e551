"""What generic checks work on: a small problem for a component, and how two results are compared."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import build, traits_of
from metarun.config.schema import Settings
from metarun.config.traits import Inputs, Kind
from metarun.core.batch import unstack
from metarun.core.inner import draw_theta
from metarun.core.seeding import generator_for
from metarun.core.types import (
    Algorithm,
    Backbone,
    Episode,
    Examples,
    FewShotAlgorithm,
    Task,
    TaskShape,
    TaskSource,
    TaskSpec,
    Theta,
    Trial,
)
from metarun.datasets.sampling.numbered import Numbered
from metarun.engine.build import build_algorithm, build_dataset, put_in_order, traits_of_backbone, what_is_read

SHAPE = TaskShape(ways=3, shots=2, queries=2)  # of the random tasks
LENGTH = 16  # n-grams in a row of theirs
NOISE = 0.05  # that moves theta away from where training starts, in standard deviations
CLOSE, NEAR = 1e-7, 1e-4  # of a gradient's norm: rounding in float64; the error of a finite difference
MLP: dict[str, Any] = {"name": "mlp", "hidden": [8, 6], "batch_norm": True}  # where tasks are of regression


@dataclass(frozen=True)
class Check:
    """What is checked, in words, and a function that raises AssertionError if it does not hold."""

    title: str
    body: Callable[[], None]

    def run(self) -> None:
        """Raise AssertionError if it does not hold or the component fails, ConfigError for a wrong setting."""
        try:
            self.body()
        except (AssertionError, ConfigError):
            raise
        except Exception as error:
            line = str(error).partition("\n")[0]
            raise AssertionError(f"it fails with {type(error).__name__}: {line}") from error


@dataclass(frozen=True)
class RandomTasks:
    """Tasks of random numbers, with the labels of a few-shot task or with random values."""

    kind: Kind
    input_shape: tuple[int, ...]
    inputs: Inputs = "numbers"

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec(self.kind, self.input_shape, SHAPE.ways if self.kind == "classification" else 1, self.inputs)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        def part(per_class: int) -> Examples:
            size = (num_tasks, SHAPE.ways * per_class, *self.input_shape)
            if self.inputs == "ngrams":
                x = torch.randint(2**31, size, generator=generator, dtype=torch.int32)
            else:
                x = torch.rand(size, generator=generator, dtype=torch.float64)
            if self.kind == "regression":
                return Examples(x, torch.randn(*size[:2], 1, generator=generator, dtype=torch.float64))
            return Examples(x, torch.arange(SHAPE.ways).repeat_interleave(per_class).expand(num_tasks, -1))

        return Episode(part(SHAPE.shots), part(SHAPE.queries))


@dataclass(frozen=True)
class DoubleTrials:
    """Tasks of a world, in float64."""

    source: TaskSource

    @property
    def spec(self) -> TaskSpec:
        return self.source.spec

    def sample(self, num_tasks: int, generator: torch.Generator) -> Trial:
        latent, salt = self.source.sample(num_tasks, generator)
        return Trial({name: x.double() if x.is_floating_point() else x for name, x in latent.items()}, salt)


@dataclass(frozen=True)
class Problem:
    """A method with a network, in float64, and random tasks for them."""

    algo: Algorithm
    backbone: Backbone
    source: TaskSource  # of training tasks
    tested: TaskSource  # of test tasks: without the numbers that a random network takes in training

    @classmethod
    def of(cls, settings: Settings, kind: Kind, algo: Mapping[str, Any] | None = None) -> "Problem":
        """Build it as the settings say, or with another method or other settings of it; see `algorithm`.

        In control the tasks are those of the dataset, because a world is more than numbers of some shape.
        """
        values = settings.algo if algo is None else algo
        if kind == "control":
            size = TaskShape(settings.ways, settings.shots, settings.queries)
            return cls._on(values, settings.backbone, DoubleTrials(build_dataset(settings).tasks("train", size)))
        chosen = settings.backbone if kind == "classification" else MLP
        inputs = traits_of_backbone(chosen["name"]).inputs
        side = settings.dataset.get("image_size", 28)
        shape = (1,) if kind == "regression" else (LENGTH,) if inputs == "ngrams" else (1, side, side)
        return cls._on(values, chosen, put_in_order(RandomTasks(kind, shape, inputs), values))

    @classmethod
    def _on(cls, values: Mapping[str, Any], chosen: Mapping[str, Any], tested: TaskSource) -> "Problem":
        """Build the method on the chosen network for tasks of this source."""
        shape = what_is_read(values["name"], tested.spec).input_shape
        with torch.random.fork_rng(devices=[]):
            backbone: Backbone = build("backbone", chosen, input_shape=shape).double()
        source = Numbered(tested) if backbone.numbered else tested
        return cls(build_algorithm(values, backbone, tested.spec), backbone, source, tested)

    @property
    def few_shot(self) -> FewShotAlgorithm:
        """The method, where tasks are episodes."""
        return cast(FewShotAlgorithm, self.algo)

    def tasks(self, count: int) -> Task:
        tasks: Task = self.source.sample(count, generator_for("check"))
        return tasks

    def draw_test(self) -> Episode:
        """Draw one test task, where tasks are episodes."""
        tasks: Episode = self.tested.sample(1, generator_for("test"))
        return unstack(tasks)[0]

    def theta(self, late: bool = False) -> Theta:
        """Meta-parameters at some distance from where training starts; if `late`, with a clock after many steps."""
        noise = generator_for("noise")

        def move(component: str, p: Tensor) -> Tensor:
            change = NOISE * torch.randn(p.shape, generator=noise, dtype=torch.float64)
            carried = component in traits_of(self.algo).carried  # counters and moments, which are never negative
            return (p.double() + (change.abs() if carried else change)).requires_grad_()

        drawn = draw_theta(self.algo, 0)
        theta = {c: {name: move(c, p) for name, p in params.items()} for c, params in drawn.items()}
        if late and "step" in theta.get("clock", {}):
            theta["clock"]["step"] = torch.tensor(1e6, dtype=torch.float64, requires_grad=True)
        return theta


def leaves(theta: Theta) -> list[Tensor]:
    return [p for params in theta.values() for p in params.values()]


def zip_theta(*thetas: Theta) -> Iterator[tuple[str, list[Tensor]]]:
    for component, params in thetas[0].items():
        for name in params:
            yield f"{component}.{name}", [theta[component][name] for theta in thetas]


def compare(what: str, found: list[Tensor], expected: list[Tensor]) -> None:
    """Raise AssertionError if the numbers differ by more than rounding in float64."""
    ours, theirs = (torch.cat([g.detach().flatten() for g in each]) for each in (found, expected))
    error = float((ours - theirs).norm() / theirs.norm().clamp(min=1e-12))
    require(error <= CLOSE, f"the {what} differs by {error:.1e} of its norm from plain autograd, task by task")


def require(holds: bool, line: str) -> None:
    """Raise AssertionError with this line unless it holds."""
    if not holds:
        raise AssertionError(line)
