"""No step, test or sampler asks of a GPU what it should not; planted faults are found by file and line."""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from metarun.algos.protonet import ProtoNet
from metarun.analysis.device_checks import GPU, check_draws, check_rows, check_step, draw_there, place
from metarun.analysis.problems import Problem, RandomTasks
from metarun.analysis.world_checks import check_gpu
from metarun.backbones.mlp import MLP
from metarun.cli.check import BANDIT, GLYPHS, SHORT
from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.config.registry import build, declaration, known
from metarun.config.schema import Settings
from metarun.config.traits import Kind
from metarun.core.types import Dataset, Episode, Examples, Metrics, Split, TaskShape, TaskSource, TaskSpec, Theta
from metarun.datasets.low_rank import LowRank
from metarun.datasets.sampling.augment import AsStored, PictureTransform
from metarun.datasets.sampling.episodes import EpisodeSampler, FixedEpisodes
from metarun.datasets.sampling.measured import AssaySampler, ValueSampler
from metarun.datasets.sampling.numbered import Numbered
from metarun.datasets.sampling.order import InOrder
from metarun.datasets.sampling.table import Table
from metarun.datasets.sinusoid import Sinusoid
from metarun.engine.loop import descend
from metarun.engine.watch import watch_call
from tests.engine.test_plan import SHORT as SHORT_SETTINGS
from tests.reference import maml_rl, rl2
from tests.support.steps import make_settings
from tests.support.tiny import BACKBONES, ONE_BACKBONE, REFERENCES, episodes
from tests.support.tiny_worlds import BRIEF

SHAPE = TaskShape(ways=3, shots=2, queries=2)


def load(*overrides: str) -> Settings:
    return load_settings(resolve(compose([*overrides, *SHORT, "trainer.clip_norm=1", "trainer.clip_value=1"])))


@pytest.fixture(scope="module")
def settings() -> Settings:
    """Of some method on some data: each test replaces both."""
    return load(*GLYPHS, "algo=protonet")


CASES = [
    (name, backbone, kind)
    for name, backbone in [*ONE_BACKBONE, ("protonet", "resnet12")]
    for kind in declaration("algo", name).traits.kinds
    if kind == "classification" or backbone == "mlp"
]


@pytest.mark.parametrize(("name", "backbone", "kind"), CASES)
def test_a_step_and_each_row_of_a_test_ask_nothing_of_the_host(
    name: str, backbone: str, kind: Kind, settings: Settings
) -> None:
    values = {"name": name, **REFERENCES[name].SETTINGS, **SHORT_SETTINGS.get(name, {})}
    drops = {"drop_rate": 0.2} if backbone == "resnet12" else {}
    settings = replace(settings, algo=values, backbone={"name": backbone, **BACKBONES[backbone], **drops})
    check_step(partial(Problem.of, settings, kind), settings.trainer)
    check_rows(settings, kind)


WORLDS = {name: {**world.identity(), "name": name} for name, world in BRIEF.items()}


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in known("dataset")
        if declaration("dataset", name).traits.kind == "control" and name != "gymnasium"  # environments of the host
    ],
)
def test_a_world_and_its_rules_ask_nothing_of_the_host(name: str) -> None:
    source = build("dataset", WORLDS[name], device=GPU).tasks("train", SHAPE)
    check_gpu(source, declaration("dataset", name).traits.rules)


@pytest.mark.parametrize(("name", "own"), [("rl2", rl2.SETTINGS), ("maml_rl", maml_rl.SETTINGS)])
@pytest.mark.parametrize("world", ["bandit", "navigation"])
def test_what_acts_in_a_world_asks_nothing_of_the_host(name: str, own: dict[str, Any], world: str) -> None:
    """By choices, and by numbers. The rules of the world are rows of the test."""
    settings = load(*BANDIT, f"algo={name}", "shots=1", "queries=1")
    backbone = {"name": "mlp", "hidden": [4], "batch_norm": False}
    settings = replace(settings, algo={**settings.algo, **own}, backbone=backbone, dataset=WORLDS[world])
    check_step(partial(Problem.of, settings, "control"), settings.trainer)
    check_rows(settings, "control")


@pytest.mark.parametrize(("name", "capturable"), [("adam", True), ("adam", False), ("sgd", False)])
def test_an_outer_optimiser_asks_nothing_of_the_host(
    name: str, capturable: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a graph has it, with its rate on the device, and without."""
    adam = import_module("torch.optim.adam")
    monkeypatch.setattr(adam, "_get_capturable_supported_devices", lambda **_: ["meta"])
    weight = torch.zeros(3, device=GPU, requires_grad=True)
    optimizer = build("optimizer", load(f"optimizer={name}").optimizer).over([{"params": [weight]}])
    if capturable:
        optimizer.param_groups[0] |= {"capturable": True, "lr": torch.tensor(0.1, device=GPU)}
    theta, gradient = {"net": {"w": weight}}, {"net": {"w": torch.ones(3, device=GPU)}}
    step = partial(descend, theta, gradient, optimizer, make_settings(clip_norm=1.0, clip_value=1.0))
    step()  # makes the optimiser's state
    assert watch_call(step, GPU, float64=False) == []


@dataclass(frozen=True)
class Given:
    """A dataset of one source."""

    source: TaskSource

    def tasks(self, split: Split, shape: TaskShape) -> TaskSource:
        return self.source


def check_source(source: TaskSource) -> None:
    check_draws(cast(Dataset, Given(source)), SHAPE)


LABELS = torch.arange(4).repeat_interleave(5)
UNEVEN = torch.tensor([0] * 5 + [1] * 7 + [2] * 4 + [3] * 6)
CHANGED = PictureTransform(crop=1, flip=True, jitter=0.4, mean=[0.5] * 3, std=[0.5] * 3)


def pictures(count: int, where: torch.device = GPU) -> Tensor:
    return torch.zeros(count, 3, 6, 6, dtype=torch.uint8, device=where)


def make_sources() -> Iterator[tuple[str, TaskSource]]:
    """A source of each kind, for the stand-in of a GPU."""
    for place_name, where in (("device", GPU), ("host", torch.device("cpu"))):
        even = Table.from_labels(pictures(20, where), LABELS, torch.arange(20), GPU)
        uneven = Table.from_labels(pictures(22, where), UNEVEN, torch.arange(22), GPU)
        turned = EpisodeSampler(replace(even, rotated=True), SHAPE, 4, CHANGED)
        yield f"pictures on the {place_name}", EpisodeSampler(even, SHAPE)
        yield f"classes of several sizes on the {place_name}", EpisodeSampler(uneven, SHAPE)
        yield f"rotated and changed pictures on the {place_name}", turned
        yield f"minibatches of pictures on the {place_name}", turned.minibatches(4)
        yield f"ordered pictures on the {place_name}", InOrder(turned, mixed=False, strings=False)
        yield f"mixed pictures with strings on the {place_name}", InOrder(turned, mixed=True, strings=True)
        yield f"numbered pictures on the {place_name}", Numbered(turned)
    rows = torch.zeros(22, 8, dtype=torch.int32, device=GPU)
    table = Table.from_labels(rows, UNEVEN, torch.arange(22), GPU)
    yield "texts", EpisodeSampler(table, SHAPE, transform=AsStored("ngrams"))
    yield "assays", AssaySampler(table, torch.zeros(22, dtype=torch.bool, device=GPU), TaskShape(1, 2, 2))
    yield "measured values", ValueSampler(table, torch.zeros(22, 2, device=GPU), SHAPE, "ngrams")
    yield "published tasks", FixedEpisodes(place(episodes(2)), SHAPE)
    yield "sine waves", Sinusoid(GPU).tasks("train", SHAPE)


@pytest.mark.parametrize("source", [pytest.param(source, id=name) for name, source in make_sources()])
def test_tasks_are_drawn_on_the_device(source: TaskSource) -> None:
    check_source(source)


def test_rules_that_predict_ask_nothing_of_the_host() -> None:
    check_draws(LowRank(4, 2, 0.1, GPU), SHAPE, declaration("dataset", "low_rank").traits.rules)
    with pytest.raises(AssertionError, match="its traits name rules, its tasks have none"):
        check_draws(Sinusoid(GPU), SHAPE, ["mean"])


SPEC = RandomTasks("classification", (1, 4, 4)).spec
Fault = Callable[[Tensor], Tensor]  # on features [n, D]
FAULTS: dict[str, tuple[Fault, str]] = {
    "an arange without device": (lambda z: z + torch.arange(z.shape[1]), "has tensors of the host and of the device"),
    "a mask on the host": (lambda z: z.where(torch.ones(z.shape[1]) > 0, 0.0), "has tensors of the host and of the"),
    "an index by a mask": (lambda z: z[z.sum(1) > 0], "aten.index.Tensor by a mask waits for the device"),
    "an index by a mask on the host": (lambda z: z[torch.ones(len(z)) > 0], "aten.index.Tensor by a mask waits"),
    "item": (lambda z: z / z.sum().item(), "aten._local_scalar_dense.default waits for the device"),
    "a decision": (lambda z: z if z.sum() > 0 else -z, "aten._local_scalar_dense.default waits for the device"),
    "nonzero": (lambda z: z[(z.sum(1) > 0).nonzero()[:, 0]], "aten.nonzero.default waits for the device"),
    "numbers from the host": (lambda z: z * torch.tensor([2.0], device=z.device), "tensor copies numbers from the"),
    "a new tensor": (lambda z: z * z.new_tensor([2.0]), "new_tensor copies numbers from the host"),
    "a copy from the host": (lambda z: z * torch.ones(1).to(z), "aten._to_copy.default copies between the device"),
    "a copy to the host": (lambda z: z.cpu().to(z), "aten._to_copy.default copies between the device and the host"),
    "linalg.solve": (lambda z: z @ torch.linalg.solve(z.T @ z, z.T @ z), "aten._linalg_check_errors.default waits"),
    "float64": (lambda z: (2 * z.double()).float(), "aten._to_copy.default makes float64, which this device may not"),
}


def plant(fault: Fault, in_test: bool = False) -> ProtoNet:
    """A method with the fault where it embeds, or in its test alone."""

    class Faulty(ProtoNet):
        def embed(self, theta: Theta, x: Tensor) -> Tensor:
            return super().embed(theta, x) if in_test else fault(super().embed(theta, x))

        def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
            return {"accuracy": fault(self.embed(theta, episode.query.x)).mean()}

    return Faulty("running", MLP(hidden=[6, 5], batch_norm=True, input_shape=SPEC.input_shape), SPEC)


def say_where(fault: Fault, text: str) -> str:
    """What a check says of it: its file, its line and the text."""
    line = inspect.getsourcelines(fault)[1]
    return f"{Path(__file__)}:{line}: {text}"


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_in_a_step_is_found_by_its_line(name: str) -> None:
    fault, text = FAULTS[name]

    def problem() -> Problem:
        algo, tasks = plant(fault), RandomTasks("classification", SPEC.input_shape)
        return Problem(algo, algo.backbone, tasks, tasks)

    with pytest.raises(AssertionError) as raised:
        check_step(problem, make_settings())
    found = str(raised.value)
    where = say_where(fault, "")
    assert where in found
    assert text in found.partition(where)[2].partition("; ")[0]


def test_solving_without_checking_for_errors_does_not_wait() -> None:
    """What `metarun.core.solvers` does in place of linalg.solve."""
    matrix = torch.zeros(3, 3, device=GPU)
    assert watch_call(lambda: torch.linalg.solve_ex(matrix, matrix), GPU) == []


def test_a_fault_in_a_test_is_found_by_its_line(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, text = FAULTS["item"]

    def problem(settings: Settings, kind: Kind, algo: Any = None) -> Problem:
        faulty, tasks = plant(fault, in_test=True), RandomTasks("classification", SPEC.input_shape)
        return Problem(faulty, faulty.backbone, tasks, tasks)

    monkeypatch.setattr(Problem, "of", problem)
    with pytest.raises(AssertionError) as raised:
        check_rows(settings, "classification")
    assert say_where(fault, text) in str(raised.value)


@dataclass(frozen=True)
class Careless:
    """Tasks with a fault."""

    draw: Callable[[torch.Generator], Tensor]  # of numbers [2, 6, 1]
    label: Callable[[], Tensor]  # [2, 6]

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", (1,), 3)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        part = Examples(self.draw(generator), self.label())
        return Episode(part, part)


def draw_right(generator: torch.Generator) -> Tensor:
    return torch.rand(2, 6, 1, generator=generator, device=generator.device).to(GPU)


def label_right() -> Tensor:
    return torch.arange(3, device=GPU).repeat(2, 2)


def test_faults_of_a_sampler_are_found() -> None:
    check_source(Careless(draw_right, label_right))
    with pytest.raises(AssertionError, match=r"on the host are results of shapes \[2, 6\], \[2, 6\]"):
        check_source(Careless(draw_right, lambda: torch.arange(3).repeat(2, 2)))
    with pytest.raises(AssertionError, match=r"on the host are results of shapes \[2, 6, 1\], \[2, 6, 1\]"):
        draw_there(Careless(lambda _: torch.rand(2, 6, 1), label_right))
    copied: Fault = lambda _: torch.rand(2, 6, 1).to(GPU)  # noqa: E731  (whatever the generator)
    with pytest.raises(AssertionError) as raised:
        check_source(Careless(cast(Any, copied), label_right))
    assert say_where(copied, "aten._to_copy.default copies between the device and the host") in str(raised.value)
