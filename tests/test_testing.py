"""The generic checks: registered components pass them, planted faults are caught."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn

from metarun.algos.maml import MAML
from metarun.algos.protonet import ProtoNet
from metarun.analysis.checks import (
    check_batching,
    check_chunks,
    check_company,
    check_figure,
    check_init,
    check_slope,
    check_state,
)
from metarun.analysis.data_checks import check_determinism, check_disjoint, check_splits, check_tasks, draw_tasks
from metarun.analysis.problems import Problem, RandomTasks
from metarun.backbones.mlp import MLP
from metarun.cli.check import find_checks
from metarun.cli.compose import describe_options
from metarun.core.inner import copy_weights
from metarun.core.types import Backbone, Dataset, Episode, Examples, Metrics, Split, TaskShape, TaskSpec, Theta
from metarun.testing import check_algorithm, check_backbone, check_dataset
from tests.conftest import Command
from tests.support.tiny import BACKBONES

TINY_BACKBONES = {
    name: [f"backbone.{key}={'null' if value is None else value}".replace(" ", "") for key, value in settings.items()]
    for name, settings in BACKBONES.items()
}


@pytest.mark.integration
@pytest.mark.parametrize("name", [name for name in describe_options("algo") if name != "rule"])  # which learns nothing
def test_every_method_passes(place: Path, name: str) -> None:
    steps = {"alpha_tim": 5, "linear_probe": 2, "quadratic_probe": 2}  # gradient steps by the dozen take minutes
    check_algorithm(name, *([f"algo.steps={steps[name]}"] if name in steps else []))


@pytest.mark.parametrize("name", [name for name in TINY_BACKBONES if name != "torchvision"])  # seconds of float64
def test_every_network_passes(place: Path, name: str) -> None:
    check_backbone(name, *TINY_BACKBONES[name])


def test_datasets_that_need_no_files_pass(place: Path) -> None:
    check_dataset("sinusoid")
    check_dataset("glyphs", "dataset.classes_train=20", "dataset.classes_val=10", "dataset.classes_test=10")


def test_the_command_has_a_line_for_each_check(metarun: Command) -> None:
    answer = metarun("check", "dataset=sinusoid")
    assert answer.code == 0
    assert len(answer.out.splitlines()) == len(find_checks("dataset=sinusoid")) > 3
    assert all(line.startswith("ok ") for line in answer.out.splitlines())


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["algo=protonett"], "are protonet, robust_protonet, relationnet"),
        (["algos=protonet"], "algos=protonet cannot be checked (did you mean algo?)"),
        (["protonet"], "protonet cannot be checked"),
        (["backbone=koch"], "nothing is left of images [1, 28, 28]"),
    ],
)
def test_what_cannot_be_checked_is_said(metarun: Command, words: list[str], text: str) -> None:
    answer = metarun("check", *words)
    assert answer.code == 2
    assert text in answer.err


SPEC = RandomTasks("classification", (1, 4, 4)).spec


def make_problem(build: Callable[[Backbone], Any], batch_norm: bool = True) -> Problem:
    """A method on a small network."""
    with torch.random.fork_rng(devices=[]):
        backbone = MLP(hidden=[6, 5], batch_norm=batch_norm, input_shape=SPEC.input_shape).double()
        algo = build(backbone)
    tasks = RandomTasks("classification", SPEC.input_shape)
    return Problem(algo, backbone, tasks, tasks)


def make_maml(kind: type[MAML], backbone: Backbone) -> MAML:
    return kind(0.1, 1, False, "per_query", backbone, backbone.head(SPEC.output_size), SPEC)


@pytest.mark.parametrize("check", [check_batching, check_chunks, check_slope])
def test_a_right_gradient_passes(check: Callable[[Problem], None]) -> None:
    check(make_problem(lambda backbone: make_maml(MAML, backbone)))


class FirstOrder(MAML):
    """Drops the second derivatives and does not say so."""

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        return MAML.trajectory(replace(self, first_order=True), theta, support)


class Detached(MAML):
    """Leaves the head out of the graph."""

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        return super().predict(theta, {**phi, "head": {name: p.detach() for name, p in phi["head"].items()}}, x)


class Longer(MAML):
    """Its loss is scaled, its gradient is not: the direction is right, the length is wrong."""

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        loss, metrics = super().task_loss(theta, episode)
        return loss + loss.detach(), metrics


@pytest.mark.parametrize("kind", [FirstOrder, Detached, Longer])
def test_a_wrong_gradient_is_caught(kind: type[MAML]) -> None:
    with pytest.raises(AssertionError, match="something is left out of the graph"):
        check_slope(make_problem(lambda backbone: make_maml(kind, backbone)))


class Counting(MAML):
    """Weighs the tasks by how many came before."""

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        count = len(vars(self).setdefault("seen", []))
        vars(self)["seen"].append(count)
        loss, metrics = super().task_loss(theta, episode)
        return (1 + count) * loss, metrics


def test_a_state_outside_of_theta_is_caught() -> None:
    with pytest.raises(AssertionError, match="of its norm from plain autograd"):
        check_batching(make_problem(lambda backbone: make_maml(Counting, backbone)))


@dataclass(frozen=True)
class Outside(ProtoNet):
    """Draws a layer in its constructor; theta has a copy of it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "layer", nn.Linear(2, 2))

    def init(self) -> Theta:
        return {**super().init(), "layer": copy_weights(cast(Any, self).layer)}


@dataclass(frozen=True)
class Late(ProtoNet):
    """Draws a layer when it is first asked for, and keeps it."""

    def init(self) -> Theta:
        if "layer" not in vars(self):
            object.__setattr__(self, "layer", nn.Linear(2, 2))
        return {**super().init(), "layer": copy_weights(vars(self)["layer"])}


def make_protonet(kind: type[ProtoNet], backbone: Backbone) -> ProtoNet:
    return kind("running", backbone, SPEC)


def test_weights_that_are_drawn_in_init_pass() -> None:
    check_init(lambda: make_problem(lambda backbone: make_protonet(ProtoNet, backbone)))


@pytest.mark.parametrize("kind", [Outside, Late])
def test_weights_that_are_drawn_outside_of_init_are_caught(kind: type[ProtoNet]) -> None:
    def problem() -> Problem:  # not in a fork of the generator, as a careless caller
        backbone = MLP(hidden=[6, 5], batch_norm=True, input_shape=SPEC.input_shape)
        tasks = RandomTasks("classification", SPEC.input_shape)
        return Problem(make_protonet(kind, backbone), backbone, tasks, tasks)

    state = torch.get_rng_state()
    with pytest.raises(AssertionError, match=r"init\(\)"):
        check_init(problem)
    torch.set_rng_state(state)


class Centred(ProtoNet):
    """Subtracts the queries' mean, which each of them sees so."""

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        return super().predict(theta, phi, x - x.mean(0))


class Told(ProtoNet):
    """Adapts to the queries and their labels where it is tested."""

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return super().task_metrics(theta, Episode(episode.query, episode.query))


def test_queries_that_see_nothing_of_each_other_pass() -> None:
    problem = make_problem(lambda backbone: make_protonet(ProtoNet, backbone), batch_norm=False)
    check_company(problem, problem.theta())
    check_figure(problem, problem.theta())


def test_queries_that_see_each_other_are_caught() -> None:
    problem = make_problem(lambda backbone: make_protonet(Centred, backbone), batch_norm=False)
    with pytest.raises(AssertionError, match="they see each other"):
        check_company(problem, problem.theta())


def test_a_test_that_sees_the_answers_is_caught() -> None:
    problem = make_problem(lambda backbone: make_protonet(Told, backbone), batch_norm=False)
    with pytest.raises(AssertionError, match="task_metrics says accuracy"):
        check_figure(problem, problem.theta())


@dataclass(eq=False)
class Foreign(MLP):
    """Has torch's own batch norm, which always goes by the batch."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(o, track_running_stats=False) for o in self.hidden)


def test_a_norm_layer_of_another_kind_is_caught() -> None:
    tasks = RandomTasks("classification", SPEC.input_shape)
    backbone = Foreign(hidden=[6, 5], batch_norm=True, input_shape=SPEC.input_shape).double()
    with pytest.raises(AssertionError, match=r"use metarun\.core\.norm\.BatchNorm"):
        check_state(Problem(make_protonet(ProtoNet, backbone), backbone, tasks, tasks))


@dataclass(frozen=True)
class Numbers:
    """A dataset whose examples are numbers: 0..9 are those of class 0, and so on."""

    classes: dict[str, range] = field(
        default_factory=lambda: {"train": range(10), "val": range(10, 20), "test": range(20, 30)}
    )
    replace: bool = False
    stateful: bool = False

    def tasks(self, split: Split, shape: TaskShape) -> "NumberTasks":
        return NumberTasks(self, split, shape)


@dataclass(frozen=True)
class NumberTasks:
    dataset: Numbers
    split: Split
    shape: TaskShape

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", (1,), self.shape.ways)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        ways, shots, queries = self.shape
        there, each = torch.tensor([*self.dataset.classes[self.split]]), shots + queries
        uses = None if self.dataset.stateful else generator
        chosen = torch.rand(num_tasks, len(there), generator=uses).argsort(-1)[:, :ways]
        order = torch.rand(num_tasks, ways, 10, generator=uses).argsort(-1)
        members = (
            torch.randint(10, (num_tasks, ways, each), generator=uses) if self.dataset.replace else order[..., :each]
        )
        x = (10 * there[chosen][..., None] + members).float()
        y = torch.arange(ways)[:, None].expand(num_tasks, ways, each)
        parts = (slice(0, shots), slice(shots, None))
        support, query = (Examples(x[..., part].flatten(1, 2)[..., None], y[..., part].flatten(1, 2)) for part in parts)
        return Episode(support, query)


SHAPE = TaskShape(ways=3, shots=2, queries=3)


def draw(dataset: Numbers, seed: int = 0) -> Callable[[Split], Episode]:
    found = {split: draw_tasks(cast(Dataset, dataset), split, SHAPE, seed) for split in ("train", "val", "test")}
    return lambda split: found[split]


def test_a_right_dataset_passes() -> None:
    dataset = Numbers()
    check_tasks(cast(Dataset, dataset), SHAPE, draw(dataset))
    check_determinism(cast(Dataset, dataset), SHAPE, draw(dataset))
    check_disjoint(draw(dataset))
    check_splits(draw(dataset))


def test_faults_of_a_dataset_are_caught() -> None:
    with pytest.raises(AssertionError, match="the same example in support and queries"):
        check_disjoint(draw(Numbers(replace=True)))
    shared = Numbers({"train": range(10), "val": range(9, 20), "test": range(20, 30)})  # one class
    with pytest.raises(AssertionError, match="examples are in train and in val"):
        check_splits(draw(shared))
    loose = Numbers(stateful=True)
    with pytest.raises(AssertionError, match="change the global random generator"):
        check_determinism(cast(Dataset, loose), SHAPE, draw(loose))
    wrong = draw(Numbers())
    with pytest.raises(AssertionError, match=r"labels outside of 0\.\.1"):
        check_tasks(cast(Dataset, Numbers()), TaskShape(2, 2, 3), wrong)


FAULTY = '''
"""Methods with a fault each."""
from dataclasses import dataclass
from torch import Tensor
from metarun.algos.protonet import ProtoNet
from metarun.config.registry import register
from metarun.config.schema import Norm
from metarun.config.traits import Traits
from metarun.core.types import Backbone, Episode, Metrics, TaskSpec, Theta


@register("algo", "forgetful", Traits(kinds=("classification",)))
@dataclass(eq=False)
class Forgetful:
    """Its loss grows with every step it has seen."""

    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        self.plain, self.step = ProtoNet(self.norm, self.backbone, self.spec), 0

    def init(self) -> Theta:
        return self.plain.init()

    def adapt(self, theta, support):
        return self.plain.adapt(theta, support)

    def predict(self, theta, phi, x) -> Tensor:
        return self.plain.predict(theta, phi, x)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        self.step += 1
        loss, metrics = self.plain.task_loss(theta, episode)
        return loss * self.step, metrics

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return self.plain.task_metrics(theta, episode)
'''


@pytest.mark.integration
def test_a_faulty_method_of_a_package_fails_by_the_command(
    metarun_process: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package, info = place / "site" / "faulty", place / "site" / "faulty-1.0.dist-info"
    for folder in (package / "configs" / "algo", info):
        folder.mkdir(parents=True)
    (package / "__init__.py").write_text(FAULTY)
    (package / "configs" / "algo" / "forgetful.yaml").write_text("# Forgetful\nname: forgetful\nnorm: running\n")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: faulty\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[metarun]\nfaulty = faulty\n")
    path = os.pathsep.join([str(place / "site"), os.environ.get("PYTHONPATH", "")])
    monkeypatch.setenv("PYTHONPATH", path)
    answer = metarun_process("check", "algo=forgetful")
    assert answer.code == 1
    failed = [line for line in answer.out.splitlines() if line.startswith("FAILED")]
    assert any("a training that goes on from a checkpoint is bit-equal" in line for line in failed)
    assert f"algo=forgetful: {len(failed)} check" in answer.err
