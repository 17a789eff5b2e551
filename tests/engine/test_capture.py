"""A step recorded once and replayed as a CUDA graph is the step: with torch.cuda replaced on a CPU. On a GPU it is
`scripts/gpu.py check` that shows it.
"""

import gc
import weakref
from dataclasses import replace
from typing import Any

import pytest
import torch

from metarun.backbones.resnet12 import drop_block
from metarun.core.batch import Execution
from metarun.core.types import Metrics
from metarun.engine.capture import WARM_UP, Captured, capture_descent, capture_step, choose_recording, record
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.gradient import sum_tasks
from metarun.engine.loop import Descent
from metarun.engine.plan import MetaGradient
from metarun.engine.state import State
from metarun.runs.log import say
from tests.engine.test_plan import mark_slow
from tests.support.fake_cuda import FakeCuda, FakeGraph, FakeStream
from tests.support.steps import STEPS, build_step, is_recorded, make_settings, train
from tests.support.tiny import ONE_BACKBONE, algo_and_theta, episodes, leaves

SETTINGS = make_settings(clip_norm=0.1)


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> FakeCuda:
    return FakeCuda(monkeypatch)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    """What the log says."""
    monkeypatch.setattr(say, "propagate", True)
    caplog.set_level("INFO", say.name)
    return caplog


@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), mark_slow(ONE_BACKBONE))
def test_a_recorded_step_replays_as_the_steps_that_python_would_take(
    name: str, backbone: str, execution: Execution, cuda: FakeCuda
) -> None:
    """Other tasks, another rate and another step of Adam each time: nothing of them is frozen in the recording."""
    algo, theta = algo_and_theta(name, backbone)
    meta_gradient, tasks = MetaGradient(algo, replace(SETTINGS, execution=execution)), episodes(3, backbone=backbone)
    state, step = build_step(algo, theta, meta_gradient)
    expected = train(state, step, tasks)
    again, step = build_step(algo, theta, meta_gradient)
    captured = capture_step(step, again)
    found = train(again, captured, tasks)
    assert is_recorded(captured)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(leaves(again.theta), leaves(state.theta), rtol=1e-10, atol=1e-13)


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


@pytest.mark.parametrize("name", ["maml", "reptile", "baseline"])  # reptile: carried, which no optimiser moves
def test_recorded_halves_of_a_step_replay_as_the_step(name: str, cuda: FakeCuda) -> None:
    """As several processes record it: the gradient, and then clipping and the optimiser."""
    algo, theta = algo_and_theta(name, "mlp")
    state, step = build_step(algo, theta, MetaGradient(algo, SETTINGS))
    expected = train(state, step, episodes(3))
    recorded: list[Captured[Any]] = []

    def keep(descent: Descent, state: State) -> Descent:
        recorded.append(capture_descent(descent, state))
        return recorded[0]

    again, step = build_step(algo, theta, MetaGradient(algo, SETTINGS, recording="halves"), keep)
    found = train(again, step, episodes(3))
    assert is_recorded(recorded[0])
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(leaves(again.theta), leaves(state.theta), rtol=1e-10, atol=1e-13)


def test_auto_compares_graphs_where_a_run_records_them(cuda: FakeCuda) -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    run = MetaGradient(algo, make_settings(execution="auto", steps=10_000_000, tasks_per_step=6), recording="step")
    run.choose_plan(theta, lambda: episodes(6), pixels=0)
    assert run.plan.seconds is not None
    assert set(run.plan.seconds) == {"vmap", "vmap of 2", "loop"}


@pytest.mark.parametrize("watched", [True, False], ids=["seen before", "not seen before"])
def test_a_step_that_waits_for_the_device_goes_on_without_and_says_why(
    watched: bool, cuda: FakeCuda, told: pytest.LogCaptureFixture
) -> None:
    """Seen by the watched call, or, where it waits only later, refused by the device: then nothing is left behind."""
    algo, theta = algo_and_theta("maml", "mlp")
    meta_gradient, tasks = MetaGradient(algo, SETTINGS), episodes(3)
    state, step = build_step(algo, theta, meta_gradient)
    expected = train(state, step, tasks)
    again, step = build_step(algo, theta, meta_gradient)
    calls = []

    def wait(tasks: Any) -> Metrics:
        calls.append(1)
        means = step(tasks)
        if watched or len(calls) > WARM_UP:
            means["loss"].item()
        return means

    captured = capture_step(wait, again)
    found = train(again, captured, tasks)
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


@pytest.mark.filterwarnings("default:The CUDA Graph is empty")  # as a user's Python has it: no error of itself
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
    assert choose_recording(settings, cuda, adam, ALONE) == "step"
    assert not told.text
    assert choose_recording(settings, torch.device("cpu"), adam, ALONE) == "nothing"
    assert "trainer.cuda_graph has no effect: device=cpu has no CUDA graphs" in told.text
    assert choose_recording(settings, cuda, adam, Ranks(1, 2)) == "halves"
    assert (
        choose_recording(settings, cuda, sgd, ALONE) == choose_recording(settings, cuda, sgd, Ranks(1, 2)) == "gradient"
    )
    assert "SGD has its rate on the host" in told.text


def test_dropping_features_can_be_recorded(cuda: FakeCuda) -> None:
    x, numbers = torch.rand(5, 4, 6, 6), torch.arange(5.0)
    launch = record(lambda: drop_block(x, numbers, 0.3, 2))
    numbers += 5
    torch.testing.assert_close(launch(), drop_block(x, numbers, 0.3, 2), rtol=0, atol=0)


def test_nothing_that_is_dead_is_freed_while_recording(cuda: FakeCuda) -> None:
    """Freeing a graph or a stream is not allowed then: garbage is collected before, though PyTorch leaves that out."""

    class Cycle:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        dead = weakref.ref(Cycle())
        assert dead() is not None
        assert record(lambda: (torch.zeros(1) + 1, dead()))()[1] is None
    finally:
        gc.enable()


def test_everything_is_recorded_on_one_stream(cuda: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def make(device: int) -> FakeStream:
        made.append(device)
        return FakeStream(f"side of {device}")

    monkeypatch.setattr(torch.cuda, "Stream", make)
    for _ in range(2):
        captured = Captured("sum", lambda x: [x.sum()], lambda sums: sums)
        for value in range(WARM_UP + 2):
            captured(torch.full((2,), float(value)))
        assert is_recorded(captured)
    assert made == [0]
