"""The ways to execute a step: they agree, the fastest is chosen, and memory that runs out is dealt with."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from metarun.config.errors import Failed
from metarun.config.registry import traits_of
from metarun.config.schema import TrainerSettings
from metarun.engine import plan as executor
from metarun.engine.compile import Compiled
from metarun.engine.distributed import Ranks
from metarun.engine.gradient import meta_gradient, sums
from metarun.engine.loop import descend
from metarun.engine.plan import Executor
from metarun.engine.state import Window
from tests.support.tiny import ONE_BACKBONE, algo_and_theta, episodes, leaves

TASKS = 6
SHORT = {"imaml": {"cg_steps": 2}}  # a graph has every step of it


def settings(**changes) -> TrainerSettings:
    values = {
        "steps": 1,
        "tasks_per_step": TASKS,
        "tasks_per_chunk": None,
        "execution": "vmap",
        "workers": 1,
        "compile": False,
        "cuda_graph": True,
        "precision": "float32",
        "channels_last": False,
        "clip_norm": None,
        "clip_value": None,
        "log_every": 1,
        "eval_every": 1,
        "patience": None,
        "keep_best": 1,
    }
    return TrainerSettings(**{**values, **changes})


@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), ONE_BACKBONE)
def test_the_traced_graph_has_the_same_meta_gradient(
    name, backbone, execution, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced whole, double backward included; inductor's own work is tested below, for it takes a minute."""
    monkeypatch.setattr(executor.torch, "compile", lambda graph, **_: graph)
    algo, theta = algo_and_theta(name, backbone, **SHORT.get(name, {}))
    tasks = episodes(3)
    traced = meta_gradient(algo, theta, tasks, execution=execution, part=Compiled(sums(algo, execution)))
    _, _, gradient = eager = meta_gradient(algo, theta, tasks, execution=execution)
    torch.testing.assert_close(traced[:2], eager[:2], rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(leaves(traced[2]), leaves(gradient), rtol=1e-10, atol=1e-13)


def test_inductors_meta_gradient_is_eagers() -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    tasks = episodes(2)
    compiled = Executor(algo, settings(compile=True, execution="loop"))(theta, tasks)
    eager = meta_gradient(algo, theta, tasks, execution="loop")
    torch.testing.assert_close(leaves(compiled[2]), leaves(eager[2]), rtol=1e-10, atol=1e-13)


def test_a_wrong_compiled_gradient_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor.torch, "compile", lambda graph, **_: lambda *x: [1.001 * value for value in graph(*x)])
    algo, theta = algo_and_theta("maml", "mlp")
    with pytest.raises(Failed, match=r"compiled meta-gradient differs from the eager one by 1\.0e-03"):
        Compiled(sums(algo, "vmap"))(theta, episodes(2))


@pytest.mark.parametrize("fastest", ["vmap", "vmap of 2", "loop"])
def test_auto_takes_the_fastest_and_says_what_it_measured(fastest, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"vmap": ("vmap", None), "vmap of 2": ("vmap", 2), "loop": ("loop", None)}
    plan = seconds[fastest]

    def timed(self, theta, tasks, execution, chunk):
        return 0.5 if (execution, chunk) == plan else 1.0

    monkeypatch.setattr(Executor, "_timed", timed)
    algo, theta = algo_and_theta("maml", "mlp")
    run = Executor(algo, settings(execution="auto"))
    run.settle(theta, episodes(TASKS))
    assert (run.plan["execution"], run.plan["tasks_per_chunk"]) == plan
    assert run.plan["seconds"][fastest] == 0.5
    assert set(run.plan["seconds"]) == set(seconds)


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_with_unequal_shares_settle_on_the_same_plan(rank, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Executor, "_timed", lambda *_: 1.0)
    monkeypatch.setattr(Ranks, "agreed", lambda self, value: "vmap of 2")
    algo, theta = algo_and_theta("maml", "mlp")
    run = Executor(algo, settings(execution="auto"), Ranks(rank, 2))
    run.settle(theta, episodes(9))  # 4 and 5 tasks
    assert run.plan["tasks_per_chunk"] == 2


def test_auto_really_times_and_leaves_the_weights_alone() -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    before = [p.detach().clone() for p in leaves(theta)]
    run = Executor(algo, settings(execution="auto"))
    run.settle(theta, episodes(TASKS))
    assert all(s > 0 for s in run.plan["seconds"].values())
    torch.testing.assert_close([p.detach() for p in leaves(theta)], before, rtol=0, atol=0)


def limited(monkeypatch: pytest.MonkeyPatch, tasks: int) -> None:
    """As if memory were enough for so many tasks at once."""
    whole = executor.sums

    def sums_within(*arguments, **named):
        part = whole(*arguments, **named)

        def run(theta, chunk):
            if len(chunk.query.y) > tasks:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
            return part(theta, chunk)

        return run

    monkeypatch.setattr(executor, "sums", sums_within)


def test_the_chunk_is_halved_until_it_fits_and_the_gradient_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    algo, theta = algo_and_theta("maml", "mlp")
    tasks = episodes(TASKS)
    expected = meta_gradient(algo, theta, tasks, execution="vmap")
    limited(monkeypatch, tasks=2)
    run = Executor(algo, settings())
    found = run(theta, tasks)
    assert run.plan["tasks_per_chunk"] == 2  # 6, 3, 2
    torch.testing.assert_close(leaves(found[2]), leaves(expected[2]), rtol=1e-10, atol=1e-13)


def test_auto_passes_over_what_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, tasks=2)
    algo, theta = algo_and_theta("maml", "mlp")
    run = Executor(algo, settings(execution="auto"))
    run.settle(theta, episodes(TASKS))
    assert "vmap" not in run.plan["seconds"]


def test_memory_that_is_too_small_for_one_task_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    limited(monkeypatch, tasks=0)
    algo, theta = algo_and_theta("maml", "mlp")
    with pytest.raises(RuntimeError, match="allocate memory"):
        Executor(algo, settings())(theta, episodes(TASKS))


class Readings(TorchDispatchMode):
    """Counts the numbers that Python reads out of tensors: on a GPU each would wait for the device."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("execution", ["vmap", "loop"])
@pytest.mark.parametrize(("name", "backbone"), ONE_BACKBONE)
def test_a_step_reads_nothing_back_from_the_device(name, backbone, execution) -> None:
    algo, theta = algo_and_theta(name, backbone)
    optimizer = torch.optim.SGD(
        [p for c, params in theta.items() if c not in traits_of(algo).carried for p in params.values()]
    )
    run, window = Executor(algo, settings(execution=execution, clip_norm=1.0)), Window()
    with Readings() as readings:
        for _ in range(2):
            loss, metrics, gradient = run(theta, episodes(TASKS))
            descend(theta, gradient, optimizer, run.settings, traits_of(algo).carried)
            window.add({"loss": loss, **metrics})
        assert readings.count == 0
        loss.item()
        assert readings.count == 1  # the counter counts
