"""The ways to execute a step: they agree, the fastest is chosen, and memory that runs out is dealt with."""

import logging
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from metarun.core.batch import Execution
from metarun.core.types import Algorithm, Episode, Metrics, Theta
from metarun.engine.compile import Compiled
from metarun.engine.distributed import Ranks
from metarun.engine.gradient import Part, meta_gradient, sum_tasks
from metarun.engine.plan import MetaGradient, Plan
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


@pytest.mark.parametrize("fastest", ["vmap", "vmap of 2", "loop"])
def test_auto_takes_the_fastest_and_says_what_it_measured(fastest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plans = {"vmap": Plan("vmap", None), "vmap of 2": Plan("vmap", 2), "loop": Plan("loop", None)}

    def measure(self: MetaGradient, plan: Plan, theta: Theta, tasks: Episode) -> float:
        return 0.5 if plan == plans[fastest] else 1.0

    monkeypatch.setattr(MetaGradient, "measure", measure)
    algo, theta = algo_and_theta("maml", "mlp")
    run = MetaGradient(algo, make_settings(execution="auto"))
    run.choose_plan(theta, lambda: episodes(TASKS))
    assert replace(run.plan, seconds=None) == plans[fastest]
    assert run.plan.seconds is not None
    assert run.plan.seconds[fastest] == 0.5
    assert set(run.plan.seconds) == set(plans)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_with_unequal_shares_settle_on_the_same_plan(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MetaGradient, "measure", lambda *_: 1.0)
    monkeypatch.setattr(Ranks, "broadcast", lambda self, value: "vmap of 2")
    algo, theta = algo_and_theta("maml", "mlp")
    run = MetaGradient(algo, make_settings(execution="auto"), Ranks(rank, 2))
    run.choose_plan(theta, lambda: episodes(9))  # 4 and 5 tasks
    assert run.plan.tasks_per_chunk == 2


def test_auto_really_times_and_leaves_the_weights_alone() -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    before = [p.detach().clone() for p in leaves(theta)]
    run = MetaGradient(algo, make_settings(execution="auto"))
    run.choose_plan(theta, lambda: episodes(TASKS))
    assert run.plan.seconds is not None
    assert all(s > 0 for s in run.plan.seconds.values())
    torch.testing.assert_close([p.detach() for p in leaves(theta)], before, rtol=0, atol=0)


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
    run = MetaGradient(algo, make_settings(execution="auto"))
    run.choose_plan(theta, lambda: episodes(TASKS))
    assert run.plan.seconds is not None
    assert "vmap" not in run.plan.seconds


def test_memory_that_is_too_small_for_one_task_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    limit_memory(monkeypatch, tasks=0)
    algo, theta = algo_and_theta("maml", "mlp")
    with pytest.raises(RuntimeError, match="allocate memory"):
        MetaGradient(algo, make_settings())(theta, episodes(TASKS))
