"""A step recorded once and replayed as a CUDA graph is: with a recorder of our own on a CPU, really on a GPU."""

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from metarun.backbones.resnet12 import drop_block
from metarun.config.errors import Failed
from metarun.config.registry import traits_of
from metarun.core.batch import Execution
from metarun.core.types import Episode, Metrics, TaskShape, TaskSource
from metarun.datasets.sampling.augment import PictureTransform
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.numbered import Numbered
from metarun.datasets.sampling.table import Table
from metarun.datasets.sinusoid import SinusoidTasks
from metarun.engine import capture as graphs
from metarun.engine.capture import WARM_UP, Captured
from metarun.engine.gradient import meta_gradient, sum_tasks
from metarun.engine.loop import Step, descend, set_rates
from metarun.engine.plan import MetaGradient
from metarun.engine.state import State
from metarun.runs.log import say
from tests.engine.test_plan import make_settings, mark_slow
from tests.support.tiny import ONE_BACKBONE, algo_and_theta, episodes, leaves

OnTape = Callable[[Callable[[], list[torch.Tensor]]], None]
STEPS = WARM_UP + 3
PICTURES = Table.from_classes(torch.randint(256, (6, 5, 3, 8, 8), dtype=torch.uint8))


def place(value: Any) -> Any:
    """A tensor's memory and its shape now, which may be changed in place."""
    return value.detach() if isinstance(value, torch.Tensor) else value


class Tape(TorchDispatchMode):
    """Records what a device would do: operations, the tensors they read, those they write. Replaying runs no Python
    of the recorded function, as a CUDA graph does not; and as there, what would wait for the device is refused.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.entries: list[tuple[Any, ...]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.lift_fresh.default):
            raise RuntimeError(f"operation not permitted when stream is capturing: {function}")
        places = tree_map(place, (args, kwargs or {}))
        outputs = function(*args, **(kwargs or {}))
        self.entries.append((function, *places, tree_map(place, outputs)))
        return outputs

    @torch.no_grad()
    def replay(self) -> None:
        for function, args, kwargs, outputs in self.entries:
            again = function(*args, **kwargs)
            if all(value.alias_info is None for value in function._schema.returns):
                for old, new in zip(tree_leaves(outputs), tree_leaves(again), strict=True):
                    if isinstance(old, torch.Tensor):
                        old.copy_(new)


@pytest.fixture
def on_tape(monkeypatch: pytest.MonkeyPatch) -> OnTape:
    """CUDA graphs by tape: what is recorded has no effect until it is replayed."""

    def with_effects_on(changed: Callable[[], list[torch.Tensor]]) -> None:
        def record(function: Callable[[], Any]) -> Callable[[], Any]:
            before, tape = [tensor.detach().clone() for tensor in changed()], Tape()
            with tape:
                outputs = function()
            with torch.no_grad():
                for tensor, value in zip(changed(), before, strict=True):
                    tensor.copy_(value)

            def launch() -> Any:
                tape.replay()
                return tree_map(torch.clone, outputs)

            return launch

        monkeypatch.setattr(graphs, "record", record)

    monkeypatch.setattr(graphs, "run_aside", lambda function: function())
    monkeypatch.setattr(
        import_module("torch.optim.adam"), "_get_capturable_supported_devices", lambda **_: ["cpu", "cuda"]
    )
    return with_effects_on


def draw(number: int, device: str = "cpu") -> Episode:
    """Draw the tasks of a step in float64."""
    generator = torch.Generator(device).manual_seed(100 + number)
    tasks: Episode = tree_map(
        lambda x: (
            torch.rand(x.shape, generator=generator, dtype=x.dtype, device=device)
            if x.is_floating_point()
            else x.to(device)
        ),
        episodes(3),
    )
    return tasks


def build_step(name: str, backbone: str, execution: Execution, device: str = "cpu") -> tuple[State, Step]:
    """A state, and the step of a training: clipped, by an Adam whose rate a graph can read."""
    algo, theta = algo_and_theta(name, backbone)
    algo.backbone.to(device)
    theta = {c: {n: p.detach().to(device).requires_grad_() for n, p in params.items()} for c, params in theta.items()}
    carried = traits_of(algo).carried
    learned = [p for c, params in theta.items() if c not in carried for p in params.values()]
    optimizer = torch.optim.Adam(learned, lr=torch.tensor(1e-2, device=device), capturable=True)
    optimizer.param_groups[0]["initial_lr"] = 1e-2
    meta_gradient = MetaGradient(algo, make_settings(execution=execution, clip_norm=0.1))
    meta_gradient.record = False

    def step(tasks: Episode) -> Metrics:
        loss, metrics, gradient = meta_gradient(theta, tasks)
        descend(theta, gradient, optimizer, meta_gradient.settings, carried)
        return {"loss": loss, **metrics}

    return State(theta, optimizer), step


def train(state: State, step: Step, device: str = "cpu") -> list[Metrics]:
    """Take some steps, each with another rate."""
    found = []
    for number in range(STEPS):
        set_rates(state.optimizer, 1 / (1 + number))
        found.append(step(draw(number, device)))
    return found


def changed(state: State) -> list[torch.Tensor]:
    return tree_leaves((state.theta, dict(state.optimizer.state)))


def capture(state: State, step: Step) -> Captured[Metrics]:
    def gradient(metrics: Metrics) -> list[torch.Tensor]:
        return [p.grad for group in state.optimizer.param_groups for p in group["params"]]

    return Captured("step", step, gradient, lambda: changed(state))


@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), mark_slow(ONE_BACKBONE))
def test_a_recorded_step_replays_as_the_steps_that_python_would_take(
    name: str, backbone: str, execution: Execution, on_tape: OnTape
) -> None:
    """Other tasks, another rate and another step of Adam each time: nothing of them is frozen in the recording."""
    state, step = build_step(name, backbone, execution)
    expected = train(state, step)
    again, step = build_step(name, backbone, execution)
    on_tape(lambda: changed(again))
    captured = capture(again, step)
    found = train(again, captured)
    assert step not in captured.programs.values()
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(leaves(again.theta), leaves(state.theta), rtol=1e-10, atol=1e-13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), ONE_BACKBONE)
def test_a_step_as_a_cuda_graph_is_the_step(name: str, backbone: str, execution: Execution) -> None:
    state, step = build_step(name, backbone, execution, "cuda")
    expected = train(state, step, "cuda")
    again, step = build_step(name, backbone, execution, "cuda")
    captured = capture(again, step)
    found = train(again, captured, "cuda")
    assert step not in captured.programs.values()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(leaves(again.theta), leaves(state.theta), rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), ONE_BACKBONE)
def test_a_gradient_as_a_cuda_graph_is_the_gradient(name: str, backbone: str, execution: Execution) -> None:
    algo, theta = algo_and_theta(name, backbone)
    algo.backbone.cuda()
    theta = {c: {n: p.detach().cuda().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
    part = Captured("gradient", sum_tasks(algo, execution), lambda outputs: outputs[1])
    for seed in range(WARM_UP + 2):
        tasks = tree_map(torch.Tensor.cuda, episodes(3, seed=seed))
        found = meta_gradient(algo, theta, tasks, execution=execution, part=part)
        eager = meta_gradient(algo, theta, tasks, execution=execution)
        torch.testing.assert_close(leaves(found[2]), leaves(eager[2]), rtol=1e-10, atol=1e-13)
    assert part.function not in part.programs.values()


def test_a_recorded_gradient_is_the_gradient_at_other_weights_and_tasks(on_tape: OnTape) -> None:
    on_tape(list)
    algo, theta = algo_and_theta("maml", "mlp")
    part = Captured("gradient", sum_tasks(algo, "vmap"), lambda outputs: outputs[1])
    for seed in range(WARM_UP + 2):
        tasks = episodes(3, seed=seed)
        found, expected = part(theta, tasks), sum_tasks(algo, "vmap")(theta, tasks)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
        theta = {c: {n: (1.1 * p).detach().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
    assert len(part.programs) == 1
    assert part.function not in part.programs.values()


def test_a_step_that_waits_for_the_device_goes_on_without_and_says_why(
    on_tape: OnTape, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(say, "propagate", True)
    caplog.set_level("INFO", say.name)
    state, step = build_step("maml", "mlp", "vmap")
    expected = train(state, step)
    again, step = build_step("maml", "mlp", "vmap")
    on_tape(lambda: changed(again))

    def wait(tasks: Episode) -> Metrics:
        means = step(tasks)
        assert math.isfinite(means["loss"].item())
        return means

    found = train(again, capture(again, wait))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert "step not recorded as a CUDA graph: operation not permitted" in caplog.text


def test_a_recording_that_freezes_a_number_is_refused(on_tape: OnTape) -> None:
    """Python holds a number that changes from call to call: the graph would keep the one of its recording."""
    state, step = build_step("maml", "mlp", "vmap")
    on_tape(lambda: changed(state))
    calls = []

    def drift(tasks: Episode) -> Metrics:
        calls.append(1)
        return step(tree_map(lambda x: x * (1 + len(calls)) if x.is_floating_point() else x, tasks))

    with pytest.raises(Failed, match="the CUDA graph's meta-gradient differs from the eager one"):
        train(state, capture(state, drift))


@pytest.mark.parametrize(
    "source",
    [
        SinusoidTasks(TaskShape(1, 2, 3), torch.device("cpu")),
        Numbered(EpisodeSampler(PICTURES, TaskShape(3, 2, 2))),
        EpisodeSampler(
            Table.from_labels(
                torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8),
                torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]),
                torch.arange(9),
                torch.device("cpu"),
            ),
            TaskShape(2, 1, 1),
            transform=PictureTransform(crop=2, flip=True, jitter=0.4, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3]),
        ),
        EpisodeSampler(
            Table.from_classes(torch.randint(256, (6, 5, 3, 8, 8), dtype=torch.uint8)), TaskShape(3, 2, 2)
        ).minibatches(4),
    ],
    ids=["sinusoid", "numbered pictures", "changed pictures of uneven classes", "minibatches"],
)
def test_sampling_can_be_recorded(source: TaskSource, on_tape: OnTape) -> None:
    """Nothing is read from the device and nothing sent to it: a sampler does not wait either."""
    on_tape(list)
    generator = torch.Generator()
    launch = graphs.record(lambda: source.sample(4, generator))
    for number in (5, 6):
        generator.manual_seed(100 + number)
        expected = source.sample(4, torch.Generator().manual_seed(100 + number))
        torch.testing.assert_close(launch(), expected, rtol=0, atol=0)


def test_dropping_features_can_be_recorded(on_tape: OnTape) -> None:
    on_tape(list)
    x, numbers = torch.rand(5, 4, 6, 6), torch.arange(5.0)
    launch = graphs.record(lambda: drop_block(x, numbers, 0.3, 2))
    numbers += 5
    torch.testing.assert_close(launch(), drop_block(x, numbers, 0.3, 2), rtol=0, atol=0)
