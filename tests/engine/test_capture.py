"""A step recorded once and replayed as a CUDA graph is: with torch.cuda replaced on a CPU, really on a GPU."""

from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from metarun.backbones.resnet12 import drop_block
from metarun.config.registry import traits_of
from metarun.core.batch import Execution
from metarun.core.types import Episode, Metrics
from metarun.engine.capture import WARM_UP, Captured, capture_step, choose_recording, record
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.gradient import meta_gradient, sum_tasks
from metarun.engine.loop import Step, descend, set_rates
from metarun.engine.plan import MetaGradient
from metarun.engine.state import State
from metarun.runs.log import say
from tests.engine.test_plan import make_settings, mark_slow
from tests.support.fake_cuda import FakeCuda, FakeGraph
from tests.support.tiny import ONE_BACKBONE, algo_and_theta, episodes, leaves

STEPS = WARM_UP + 3


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the log says."""
    monkeypatch.setattr(say, "propagate", True)
    caplog.set_level("INFO", say.name)
    return caplog


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

    def step(tasks: Any) -> Metrics:
        loss, metrics, gradient = meta_gradient(theta, tasks)
        descend(theta, gradient, optimizer, meta_gradient.settings, carried)
        return {"loss": loss, **metrics}

    return State(theta, optimizer), step


def train(state: State, step: Step, device: str = "cpu") -> list[Metrics]:
    """Take some steps, each with another rate."""
    found = []
    for number in range(STEPS):
        set_rates(state.optimizer, 1 / (1 + number))
        found.append({name: mean.clone() for name, mean in step(draw(number, device)).items()})
    return found


def is_recorded(captured: Captured[Any]) -> bool:
    return bool(captured.programs) and captured.function not in captured.programs.values()


@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), mark_slow(ONE_BACKBONE))
def test_a_recorded_step_replays_as_the_steps_that_python_would_take(
    name: str, backbone: str, execution: Execution, cuda: FakeCuda
) -> None:
    """Other tasks, another rate and another step of Adam each time: nothing of them is frozen in the recording."""
    state, step = build_step(name, backbone, execution)
    expected = train(state, step)
    again, step = build_step(name, backbone, execution)
    captured = capture_step(step, again)
    found = train(again, captured)
    assert is_recorded(captured)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(leaves(again.theta), leaves(state.theta), rtol=1e-10, atol=1e-13)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), ONE_BACKBONE)
def test_a_step_as_a_cuda_graph_is_the_step(name: str, backbone: str, execution: Execution) -> None:
    """The tasks are drawn on the host and copied outside of what is recorded."""
    state, step = build_step(name, backbone, execution, "cuda")
    expected = train(state, step, "cuda")
    again, step = build_step(name, backbone, execution, "cuda")
    captured = capture_step(step, again)
    found = train(again, captured, "cuda")
    assert is_recorded(captured)
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
    assert is_recorded(part)


def test_a_recorded_gradient_is_the_gradient_at_other_weights_and_tasks(cuda: FakeCuda) -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    part = Captured("gradient", sum_tasks(algo, "vmap"), lambda outputs: outputs[1])
    for seed in range(WARM_UP + 2):
        tasks = episodes(3, seed=seed)
        found, expected = part(theta, tasks), sum_tasks(algo, "vmap")(theta, tasks)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
        theta = {c: {n: (1.1 * p).detach().requires_grad_() for n, p in params.items()} for c, params in theta.items()}
    assert len(part.programs) == 1
    assert is_recorded(part)


def test_auto_compares_graphs_where_a_run_records_them(cuda: FakeCuda) -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    run = MetaGradient(algo, make_settings(execution="auto"), recording="step")
    run.choose_plan(theta, lambda: episodes(6))
    assert run.plan.seconds is not None
    assert set(run.plan.seconds) == {"graph of vmap", "graph of vmap of 2", "graph of loop"}


@pytest.mark.parametrize("watched", [True, False], ids=["seen before", "not seen before"])
def test_a_step_that_waits_for_the_device_goes_on_without_and_says_why(
    watched: bool, cuda: FakeCuda, told: pytest.LogCaptureFixture
) -> None:
    """Seen by the watched call, or, where it waits only later, refused by the device: then nothing is left behind."""
    state, step = build_step("maml", "mlp", "vmap")
    expected = train(state, step)
    again, step = build_step("maml", "mlp", "vmap")
    calls = []

    def wait(tasks: Any) -> Metrics:
        calls.append(1)
        means = step(tasks)
        if watched or len(calls) > WARM_UP:
            means["loss"].item()
        return means

    captured = capture_step(wait, again)
    found = train(again, captured)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(leaves(again.theta), leaves(state.theta), rtol=0, atol=0)
    assert not is_recorded(captured)
    assert len(calls) == STEPS + (0 if watched else 3)  # twice eagerly to compare, and once to record
    assert cuda.stream == "default"
    chain = "RuntimeError: operation not permitted when stream is capturing: aten._local_scalar_dense.default, "
    assert ("test_capture.py" if watched else chain + "then RuntimeError: CUDA error: operation failed") in told.text
    other = Captured("sum", lambda x: [x.sum()], lambda sums: sums)
    for value in range(WARM_UP + 2):
        assert other(torch.full((2,), float(value)))[0] == 2 * value
    assert is_recorded(other)


def test_a_recording_on_another_device_is_refused(
    cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch, told: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(FakeGraph, "elsewhere", True)
    captured = Captured("sum", lambda x: [x.sum()], lambda sums: sums)
    for value in range(WARM_UP + 2):
        assert captured(torch.full((2,), float(value)))[0] == 2 * value
    assert "sum not recorded as a CUDA graph: UserWarning: The CUDA Graph is empty" in told.text


def test_a_recording_that_freezes_a_number_is_not_used(cuda: FakeCuda, told: pytest.LogCaptureFixture) -> None:
    """Python holds a number that follows from the tasks: the graph keeps that of its recording. It is right for the
    tasks that it was recorded with, so it is compared at the next.
    """
    captured = Captured("gradient", lambda x: [x * float(x.numpy().mean())], lambda outputs: outputs)
    for number in range(WARM_UP + 2):
        x = torch.full((2,), 1.0 + number)
        torch.testing.assert_close(captured(x)[0], x * x.mean())
    assert not is_recorded(captured)
    assert "gradient not recorded as a CUDA graph: its meta-gradient differs from the eager one by" in told.text


@pytest.mark.parametrize(
    ("noise", "share", "recorded"), [(0.0, 0.0, True), (0.2, 0.02, True), (0.0, 0.02, False)], ids=str
)
@pytest.mark.parametrize("size", [0.0, 1.0])
def test_rounding_noise_does_not_end_a_run(
    noise: float, share: float, recorded: bool, size: float, cuda: FakeCuda
) -> None:
    """The eager gradients differ by `noise` among themselves, and the graph's by `share` from them: more is refused,
    and a gradient of zero is nothing special.
    """
    signs = iter([1.0, -1.0] * 20)

    def function(x: torch.Tensor) -> list[torch.Tensor]:
        recording = cuda.stream != "default"
        return [size * (1 + x + (share if recording else noise * next(signs)))]

    captured = Captured("gradient", function, lambda outputs: outputs)
    for _ in range(WARM_UP + 2):
        captured(torch.zeros(3))
    assert is_recorded(captured) == (recorded or size == 0)


def test_what_is_recorded_depends_on_settings_device_optimiser_and_processes(told: pytest.LogCaptureFixture) -> None:
    weight, cuda = torch.zeros(1, requires_grad=True), torch.device("cuda", 0)
    adam, sgd = torch.optim.Adam([weight], lr=torch.tensor(0.1), capturable=True), torch.optim.SGD([weight], lr=0.1)
    settings = make_settings(cuda_graph=True)
    assert choose_recording(make_settings(cuda_graph=False), cuda, adam, ALONE) == "nothing"
    assert choose_recording(settings, torch.device("cpu"), adam, ALONE) == "nothing"
    assert choose_recording(settings, cuda, adam, ALONE) == "step"
    assert not told.text
    assert choose_recording(settings, cuda, adam, Ranks(1, 2)) == "gradient"
    assert choose_recording(settings, cuda, sgd, ALONE) == "gradient"
    assert "several processes share a step" in told.text
    assert "SGD has its rate on the host" in told.text


def test_dropping_features_can_be_recorded(cuda: FakeCuda) -> None:
    x, numbers = torch.rand(5, 4, 6, 6), torch.arange(5.0)
    launch = record(lambda: drop_block(x, numbers, 0.3, 2))
    numbers += 5
    torch.testing.assert_close(launch(), drop_block(x, numbers, 0.3, 2), rtol=0, atol=0)
