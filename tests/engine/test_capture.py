"""A step recorded once and replayed as a CUDA graph is: with a recorder of our own on a CPU, really on a GPU."""

import math
from collections.abc import Callable
from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from metarun.backbones.resnet12 import drop_block
from metarun.config.errors import Failed
from metarun.config.registry import traits_of
from metarun.core.types import Episode, TaskShape
from metarun.datasets.sampling.augment import View
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.numbered import Numbered
from metarun.datasets.sampling.table import Table
from metarun.datasets.sinusoid import SinusoidTasks
from metarun.engine import capture as graphs
from metarun.engine.capture import WARM_UP, CapturedPart, CapturedStep
from metarun.engine.gradient import meta_gradient, sums
from metarun.engine.loop import descended, set_rates
from metarun.engine.plan import Executor
from metarun.engine.state import State
from metarun.runs.log import say
from tests.engine.test_plan import settings
from tests.support.tiny import ONE_BACKBONE, algo_and_theta, episodes, leaves

STEPS = WARM_UP + 3
PICTURES = Table.even(torch.randint(256, (6, 5, 3, 8, 8), dtype=torch.uint8))


def place(value):
    """A tensor's memory and its shape now, which may be changed in place."""
    return value.detach() if isinstance(value, torch.Tensor) else value


class Tape(TorchDispatchMode):
    """Records what a device would do: operations, the tensors they read, those they write. Replaying runs no Python
    of the recorded function, as a CUDA graph does not; and as there, what would wait for the device is refused.
    """

    def __init__(self) -> None:
        super().__init__()
        self.entries = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
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
def on_tape(monkeypatch: pytest.MonkeyPatch):
    """CUDA graphs by tape: what is recorded has no effect until it is replayed."""

    def with_effects_on(changed: Callable[[], list[torch.Tensor]]) -> None:
        def recorded(function, generator=None):
            before, tape = [tensor.detach().clone() for tensor in changed()], Tape()
            with tape:
                outputs = function()
            with torch.no_grad():
                for tensor, value in zip(changed(), before, strict=True):
                    tensor.copy_(value)

            def launch():
                tape.replay()
                return tree_map(torch.clone, outputs)

            return launch

        monkeypatch.setattr(graphs, "recorded", recorded)

    monkeypatch.setattr(graphs, "aside", lambda function: function())
    monkeypatch.setattr(
        import_module("torch.optim.adam"), "_get_capturable_supported_devices", lambda **_: ["cpu", "cuda"]
    )
    return with_effects_on


def drawn(generator: torch.Generator) -> Episode:
    """Tasks in float64 from the generator alone."""
    return tree_map(
        lambda x: (
            torch.rand(x.shape, generator=generator, dtype=x.dtype, device=generator.device)
            if x.is_floating_point()
            else x.to(generator.device)
        ),
        episodes(3),
    )


def stepper(name: str, backbone: str, execution: str, device: str = "cpu"):
    """A state, and the step of a training from a generator: clipped, by an Adam whose rate a graph can read."""
    algo, theta = algo_and_theta(name, backbone)
    algo.backbone.to(device)
    theta = {c: {n: p.detach().to(device).requires_grad_() for n, p in params.items()} for c, params in theta.items()}
    learned = [p for c, params in theta.items() if c not in traits_of(algo).carried for p in params.values()]
    optimizer = torch.optim.Adam(learned, lr=torch.tensor(1e-2, device=device), capturable=True)
    optimizer.param_groups[0]["initial_lr"] = 1e-2
    state, executor = State(theta, optimizer), Executor(algo, settings(execution=execution, clip_norm=0.1))
    executor.records = False
    return state, lambda generator: descended(algo, state, drawn(generator), executor, executor.settings)


def trained(state: State, meta_step) -> list[dict]:
    found = []
    for number in range(STEPS):
        set_rates(state.optimizer, 1 / (1 + number))
        found.append(meta_step(number))
    return found


def seeded(number: int, device: str = "cpu") -> torch.Generator:
    return torch.Generator(device).manual_seed(100 + number)


def captured(state: State, step, device: str = "cpu") -> CapturedStep:
    def never(number: int) -> None:
        raise AssertionError("the step was not recorded")

    return CapturedStep(step, lambda number: 100 + number, state, torch.device(device), never)


@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), ONE_BACKBONE)
def test_a_recorded_step_replays_as_the_steps_that_python_would_take(name, backbone, execution, on_tape) -> None:
    """Other tasks, another rate and another step of Adam each time: nothing of them is frozen in the recording."""
    state, step = stepper(name, backbone, execution)
    expected = trained(state, lambda number: step(seeded(number)))
    again, step = stepper(name, backbone, execution)
    on_tape(lambda: tree_leaves((again.theta, dict(again.optimizer.state))))
    found = trained(again, captured(again, step))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(leaves(again.theta), leaves(state.theta), rtol=1e-10, atol=1e-13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), ONE_BACKBONE)
def test_a_step_as_a_cuda_graph_is_the_step(name, backbone, execution) -> None:
    state, step = stepper(name, backbone, execution, "cuda")
    expected = trained(state, lambda number: step(seeded(number, "cuda")))
    again, step = stepper(name, backbone, execution, "cuda")
    found = trained(again, captured(again, step, "cuda"))
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(leaves(again.theta), leaves(state.theta), rtol=1e-9, atol=1e-12)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), ONE_BACKBONE)
def test_a_gradient_as_a_cuda_graph_is_the_gradient(name, backbone, execution) -> None:
    algo, theta = algo_and_theta(name, backbone)
    algo.backbone.cuda()
    theta = {c: {n: p.detach().cuda().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
    part = CapturedPart(sums(algo, execution))
    for seed in (0, 1):
        tasks = tree_map(torch.Tensor.cuda, episodes(3, seed=seed))
        found = meta_gradient(algo, theta, tasks, execution=execution, part=part)
        eager = meta_gradient(algo, theta, tasks, execution=execution)
        torch.testing.assert_close(leaves(found[2]), leaves(eager[2]), rtol=1e-10, atol=1e-13)
    assert part.part not in part.programs.values()


def test_a_recorded_gradient_is_the_gradient_at_other_weights_and_tasks(on_tape) -> None:
    on_tape(list)
    algo, theta = algo_and_theta("maml", "mlp")
    part = CapturedPart(sums(algo, "vmap"))
    for seed in (0, 1):
        tasks = episodes(3, seed=seed)
        found, expected = part(theta, tasks), sums(algo, "vmap")(theta, tasks)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
        theta = {c: {n: (1.1 * p).detach().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
    assert len(part.programs) == 1


def test_a_step_that_waits_for_the_device_goes_on_without_and_says_why(
    on_tape, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(say, "propagate", True)
    caplog.set_level("INFO", say.name)
    state, step = stepper("maml", "mlp", "vmap")
    expected = trained(state, lambda number: step(seeded(number)))
    again, step = stepper("maml", "mlp", "vmap")
    on_tape(lambda: tree_leaves((again.theta, dict(again.optimizer.state))))

    def waiting(generator: torch.Generator):
        means = step(generator)
        assert math.isfinite(means["loss"].item())
        return means

    def plainly(number: int):
        return waiting(seeded(number))

    found = trained(again, CapturedStep(waiting, lambda number: 100 + number, again, torch.device("cpu"), plainly))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert "step not recorded as a CUDA graph: operation not permitted" in caplog.text


def test_a_recording_that_freezes_a_number_is_refused(on_tape, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a graph would that drew the tasks of one step for ever."""
    state, step = stepper("maml", "mlp", "vmap")
    on_tape(lambda: tree_leaves((state.theta, dict(state.optimizer.state))))
    run = captured(state, lambda generator: step(seeded(run.calls)))
    with pytest.raises(Failed, match="the CUDA graph's meta-gradient differs from the eager one"):
        trained(state, lambda number: run(number + (run.calls >= WARM_UP)))


@pytest.mark.parametrize(
    "source",
    [
        SinusoidTasks(TaskShape(1, 2, 3), torch.device("cpu")),
        Numbered(EpisodeSampler(PICTURES, TaskShape(3, 2, 2))),
        EpisodeSampler(
            Table.of(
                torch.randint(256, (9, 3, 8, 8), dtype=torch.uint8),
                torch.tensor([0, 0, 0, 1, 1, 1, 1, 2, 2]),
                torch.arange(9),
                torch.device("cpu"),
            ),
            TaskShape(2, 1, 1),
            view=View(crop=2, flip=True, jitter=0.4, mean=[0.5, 0.4, 0.3], std=[0.1, 0.2, 0.3]),
        ),
        EpisodeSampler(
            Table.even(torch.randint(256, (6, 5, 3, 8, 8), dtype=torch.uint8)), TaskShape(3, 2, 2)
        ).minibatches(4),
    ],
    ids=["sinusoid", "numbered pictures", "changed pictures of uneven classes", "minibatches"],
)
def test_sampling_can_be_recorded(source, on_tape) -> None:
    """Nothing is read from the device, nothing sent to it, and each replay draws what its seed says."""
    on_tape(list)
    generator = seeded(0)
    launch = graphs.recorded(lambda: source.sample(4, generator))
    for number in (5, 6):
        generator.manual_seed(100 + number)
        torch.testing.assert_close(launch(), source.sample(4, seeded(number)), rtol=0, atol=0)


def test_dropping_features_can_be_recorded(on_tape) -> None:
    on_tape(list)
    x, numbers = torch.rand(5, 4, 6, 6), torch.arange(5.0)
    launch = graphs.recorded(lambda: drop_block(x, numbers, 0.3, 2))
    numbers += 5
    torch.testing.assert_close(launch(), drop_block(x, numbers, 0.3, 2), rtol=0, atol=0)
