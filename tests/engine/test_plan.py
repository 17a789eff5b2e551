"""The ways to execute a step: they agree, the fastest is chosen, and memory that runs out is dealt with."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from metarun.core.batch import Execution
from metarun.core.types import Algorithm, Metrics, Theta
from metarun.engine.capture import Recording
from metarun.engine.compile import Compiled
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.gradient import Part, meta_gradient, sum_tasks
from metarun.engine.plan import MetaGradient, Plan, list_plans
from tests.support.steps import make_settings
from tests.support.tiny import ONE_BACKBONE, algo_and_theta, episodes, leaves

TASKS = 6
SHORT: dict[str, dict[str, Any]] = {"imaml": {"cg_steps": 2}}  # a graph has every step of it


def mark_slow(pairs: Sequence[tuple[str, str]], quick: Collection[str] = ()) -> list[Any]:
    """Leave the methods that are not quick, by default iMAML with its many steps, to the integration tests."""
    fast = quick or {name for name, _ in pairs} - {"imaml"}
    return [pytest.param(*pair, marks=() if pair[0] in fast else pytest.mark.integration) for pair in pairs]


@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), mark_slow(ONE_BACKBONE, quick=("maml", "protonet", "reptile", "r2d2")))
def test_the_traced_graph_has_the_same_meta_gradient(
    name: str, backbone: str, execution: Execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole, double backward included; inductor's own work is tested below, for it takes a minute."""
    monkeypatch.setattr(torch, "compile", lambda graph, **_: graph)
    algo, theta = algo_and_theta(name, backbone, **SHORT.get(name, {}))
    tasks = episodes(3)
    traced = meta_gradient(algo, theta, tasks, execution=execution, part=Compiled(sum_tasks(algo, execution)))
    _, _, gradient = eager = meta_gradient(algo, theta, tasks, execution=execution)
    torch.testing.assert_close(traced[:2], eager[:2], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(leaves(traced[2]), leaves(gradient), rtol=1e-10, atol=1e-13)


@pytest.mark.integration
def test_inductors_meta_gradient_is_eagers() -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    tasks = episodes(2)
    compiled = MetaGradient(algo, make_settings(compile=True, execution="loop"))(theta, tasks)
    eager = meta_gradient(algo, theta, tasks, execution="loop")
    torch.testing.assert_close(leaves(compiled[2]), leaves(eager[2]), rtol=1e-10, atol=1e-13)


def test_a_wrong_compiled_gradient_is_not_used(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(logging.getLogger("metarun"), "propagate", True)
    monkeypatch.setattr(torch, "compile", lambda graph, **_: lambda *x: [1.001 * value for value in graph(*x)])
    algo, theta = algo_and_theta("maml", "mlp")
    tasks = episodes(2)
    found, eager = Compiled(sum_tasks(algo, "vmap"))(theta, tasks), sum_tasks(algo, "vmap")(theta, tasks)
    torch.testing.assert_close(found, eager, rtol=0, atol=0)
    assert "trainer.compile: not used, its meta-gradient differs from the eager one by 1.0e-03" in caplog.text


def choose(
    algo: Algorithm, theta: Theta, ranks: Ranks = ALONE, recording: Recording = "nothing", **changes: Any
) -> Plan:
    """The plan of a run that is long enough to time all candidates, unless `changes` say otherwise."""
    asked = {"execution": "auto", "channels_last": "auto", "steps": 10_000_000, "tasks_per_step": TASKS, **changes}
    run = MetaGradient(algo, make_settings(**asked), ranks, recording=recording)
    run.choose_plan(theta, lambda: episodes(TASKS), pixels=0)
    return run.plan


@pytest.mark.parametrize("fastest", ["vmap", "vmap of 2", "loop"])
def test_auto_takes_the_fastest_and_says_what_it_measured(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {"vmap": Plan("vmap", None), "vmap of 2": Plan("vmap", 2), "loop": Plan("loop", None)}
    seconds = {name: 0.5 if name == fastest else 1.0 for name in plans}
    monkeypatch.setattr(MetaGradient, "measure", lambda self, plan, *_, until: seconds[plan.name])
    assert choose(*algo_and_theta("maml", "mlp")) == replace(plans[fastest], seconds=seconds)


@pytest.mark.parametrize(
    ("tasks", "pixels", "changes", "expected"),
    [
        (8, 784, {}, ["vmap", "loop, channels_last", "vmap of 2", "loop"]),
        (8, 7056, {}, ["loop, channels_last", "vmap of 2", "loop", "vmap"]),
        (1, 784, {}, ["loop, channels_last", "loop", "vmap"]),
        (8, 0, {}, ["vmap", "loop", "vmap of 2"]),  # points, texts
        (8, 7056, {"channels_last": False}, ["loop", "vmap of 2", "vmap"]),
        (8, 7056, {"execution": "vmap", "tasks_per_chunk": 4}, ["vmap of 4"]),
        (8, 784, {"execution": "loop"}, ["loop, channels_last", "loop"]),
        (8, 784, {"precision": "bfloat16", "channels_last": True}, ["loop, channels_last"]),
    ],
)
def test_what_the_settings_leave_open_is_listed_by_promise(
    tasks: int, pixels: int, changes: dict[str, Any], expected: list[str]
) -> None:
    settings = make_settings(**{"execution": "auto", "channels_last": "auto", **changes})
    assert [plan.name for plan in list_plans(settings, tasks, pixels, on_cpu=True)] == expected


def test_on_a_gpu_vmap_is_most_promising_and_weights_keep_their_order() -> None:
    plans = list_plans(make_settings(execution="auto", channels_last="auto"), 8, 7056, on_cpu=False)
    assert [plan.name for plan in plans] == ["vmap", "loop", "vmap of 2"]


@pytest.mark.parametrize("changes", [{"steps": 200}, {"compile": True}])
def test_what_is_not_worth_it_is_not_timed(changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(MetaGradient, "measure")
    assert choose(*algo_and_theta("maml", "mlp"), **changes) == Plan("vmap", None)


def test_timing_ends_when_its_share_of_the_run_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps take 10 s, so 3 % of 1,000 are 300 s. Two plans take 280 s to time, and one more would exceed that."""
    clock = iter(range(0, 10_000, 140))  # is read once before the first plan, and once before each other one
    monkeypatch.setattr("metarun.engine.plan.time.perf_counter", lambda: next(clock))
    monkeypatch.setattr(MetaGradient, "measure", lambda *_, until: 10.0)
    assert list(choose(*algo_and_theta("maml", "mlp"), steps=1000).seconds or ()) == ["vmap", "loop"]


@pytest.mark.parametrize(("limit", "timed"), [(11.9, False), (12.1, True)])
def test_steps_of_which_two_take_longer_than_the_limit_are_not_timed(
    limit: float, timed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A task takes a second, so that two steps of 6 take 12."""
    monkeypatch.setattr(MetaGradient, "measure", lambda self, plan, theta, tasks, *_, until: len(tasks.query.y))
    algo, theta = algo_and_theta("maml", "mlp")
    run = MetaGradient(algo, make_settings(execution="auto", steps=10_000_000, tasks_per_step=TASKS))
    run.choose_plan(theta, lambda: episodes(TASKS), 0, limit)
    assert (run.plan.seconds is not None) == timed


def test_a_plan_that_is_far_slower_or_late_is_not_timed_as_often(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(100))
    monkeypatch.setattr("metarun.engine.plan.time.perf_counter", lambda: next(clock))
    algo, theta = algo_and_theta("maml", "mlp")
    run = MetaGradient(algo, make_settings())
    assert run.measure(Plan("vmap", None), theta, episodes(2), best=0.1) == 1
    assert next(clock) == 2  # a single step was timed
    assert run.measure(Plan("vmap", None), theta, episodes(2), until=6) == 1  # from 3 to 4 and from 5 to 6
    assert next(clock) == 7


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_with_unequal_shares_settle_on_the_same_plan(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetaGradient, "measure", lambda *_, until: 1.0)
    monkeypatch.setattr(Ranks, "broadcast", lambda self, value: "vmap of 2")
    algo, theta = algo_and_theta("maml", "mlp")
    assert choose(algo, theta, Ranks(rank, 2), tasks_per_step=9).tasks_per_chunk == 2  # 4 and 5 tasks


def test_auto_really_times_and_leaves_the_weights_alone() -> None:
    algo, theta = algo_and_theta("maml", "conv4")
    before = [p.detach().clone() for p in leaves(theta)]
    plan = choose(algo, theta)
    assert plan.seconds is not None
    assert len(plan.seconds) == 3
    assert all(s > 0 for s in plan.seconds.values())
    torch.testing.assert_close([p.detach() for p in leaves(theta)], before, rtol=0, atol=0)


def test_the_memory_order_is_given_to_the_weights_and_changes_no_value() -> None:
    algo, theta = algo_and_theta("maml", "conv4")
    tasks, before = episodes(2), [p.detach().clone() for p in leaves(theta)]
    plain = meta_gradient(algo, theta, tasks, execution="loop")
    run = MetaGradient(algo, make_settings(execution="loop", channels_last=True))
    run.choose_plan(theta, lambda: tasks, pixels=784)
    kernels = [p for p in leaves(theta) if p.dim() == 4]
    assert kernels
    assert all(p.is_contiguous(memory_format=torch.channels_last) and p.requires_grad for p in kernels)
    torch.testing.assert_close([p.detach() for p in leaves(theta)], before, rtol=0, atol=0)
    torch.testing.assert_close(leaves(run(theta, tasks)[2]), leaves(plain[2]), rtol=1e-10, atol=1e-13)


def limit_memory(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    """Make memory enough for so many tasks at once."""

    def sum_within(algo: Algorithm, execution: Execution, bfloat16: bool = False) -> Part:
        part = sum_tasks(algo, execution, bfloat16)

        def run(theta: Theta, chunk: Any) -> tuple[Metrics, list[torch.Tensor]]:
            if len(chunk.query.y) > tasks:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
            return part(theta, chunk)

        return run

    monkeypatch.setattr("metarun.engine.plan.sum_tasks", sum_within)


def test_the_chunk_is_halved_until_it_fits_and_the_gradient_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    tasks = episodes(TASKS)
    expected = meta_gradient(algo, theta, tasks, execution="vmap")
    limit_memory(monkeypatch, tasks=2)
    run = MetaGradient(algo, make_settings())
    found = run(theta, tasks)
    assert run.plan.tasks_per_chunk == 2  # 6, 3, 2
    torch.testing.assert_close(leaves(found[2]), leaves(expected[2]), rtol=1e-10, atol=1e-13)


def test_auto_passes_over_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, tasks=2)
    algo, theta = algo_and_theta("maml", "mlp")
    plan = choose(algo, theta)
    assert plan.seconds is not None
    assert "vmap" not in plan.seconds


def test_memory_that_is_too_small_for_one_task_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, tasks=0)
    algo, theta = algo_and_theta("maml", "mlp")
    with pytest.raises(RuntimeError, match="allocate memory"):
        MetaGradient(algo, make_settings())(theta, episodes(TASKS))
