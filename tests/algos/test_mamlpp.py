"""MAML++: its annealing by hand, and over the whole of training against plain autograd."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.config.registry import traits_of
from metarun.core.batch import unstack
from metarun.core.inner import outer_step
from metarun.core.types import Episode, Theta
from metarun.engine import checkpoint
from metarun.engine.gradient import meta_gradient
from metarun.engine.loop import descend, set_clock
from metarun.runs.folder import RunFolder
from tests.algos.test_carried import SETTINGS
from tests.conftest import TINY, Command
from tests.reference.plain import predict
from tests.support.tiny import algo_and_theta, episodes, leaves, plain_losses


def at(theta: Theta, step: int) -> Theta:
    """The same meta-parameters after so many outer steps."""
    clock = torch.tensor(float(step), dtype=torch.float64, requires_grad=True)
    return {**theta, "clock": {"step": clock}}


def gradient_and_plain(theta: Theta, tasks: Episode, **changes: Any) -> tuple[Theta, tuple[torch.Tensor, ...]]:
    algo, _ = algo_and_theta("mamlpp", "conv4_strided", **changes)
    loss, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    plain = plain_losses("mamlpp", "conv4_strided", theta, tasks, **changes)
    torch.testing.assert_close(loss, plain.mean().detach(), rtol=1e-9, atol=1e-12)
    return gradient, torch.autograd.grad(plain.mean(), leaves(theta), materialize_grads=True)


def test_importance_moves_from_all_steps_alike_to_the_last() -> None:
    """J = 5 over 10 outer steps: a step but the last loses 1/50 per outer step, and the last gains 4/50."""
    algo, _ = algo_and_theta("mamlpp", "mlp", inner_steps=5, multi_step_steps=10)
    for step, expected in {
        0: [0.2, 0.2, 0.2, 0.2, 0.2],
        1: [0.18, 0.18, 0.18, 0.18, 0.28],
        5: [0.1, 0.1, 0.1, 0.1, 0.6],
        10: [0, 0, 0, 0, 1],
        99: [0, 0, 0, 0, 1],
    }.items():
        assert algo.importance(torch.tensor(float(step))).tolist() == pytest.approx(expected, abs=1e-7)


def test_no_multi_step_steps_mean_the_last_step_alone() -> None:
    algo, _ = algo_and_theta("mamlpp", "mlp", inner_steps=3, multi_step_steps=0)
    assert algo.importance(torch.tensor(0.0)).tolist() == [0, 0, 1]


@pytest.mark.parametrize("step", [0, 1, 3, 4, 7])
def test_while_annealing_loss_and_meta_gradient_equal_plain_autograd(step: int) -> None:
    theta = at(algo_and_theta("mamlpp", "conv4_strided")[1], step)
    gradient, expected = gradient_and_plain(theta, episodes(2), multi_step_steps=4)
    torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)


def test_first_order_until_the_switch_and_second_order_from_then_on() -> None:
    _, theta = algo_and_theta("mamlpp", "conv4_strided")
    tasks = episodes(2)
    for step, first_order in [(0, True), (2, True), (3, False)]:
        now = at(theta, step)
        gradient, expected = gradient_and_plain(now, tasks, first_order_steps=3)
        torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)
        exact, _ = gradient_and_plain(now, tasks, first_order_steps=0)
        difference = max((a - b).abs().max() for a, b in zip(leaves(gradient), leaves(exact)))
        assert bool(difference > 1e-4) == first_order
        assert first_order or difference == 0
        assert min(g.abs().max() for g in gradient["lr"].values()) > 0  # rates are learned in either order


def test_each_step_has_its_own_norm_parameters() -> None:
    """The support pass before update j and the query pass after it see set j: changing it changes states j on."""
    algo, theta = algo_and_theta("mamlpp", "conv4_strided", inner_steps=3)
    task = unstack(episodes(1))[0]
    assert all(p.shape == (3, 4) for p in theta["norm"].values())

    def predictions(theta: Theta) -> list[torch.Tensor]:
        states = list(algo.trajectory(theta, task.support))
        for state in states:
            expected = predict("conv4_strided", state, task.query.x)
            torch.testing.assert_close(algo.predict(theta, state, task.query.x), expected)
        return [algo.predict(theta, state, task.query.x) for state in states]

    before = predictions(theta)
    for j, changed in [
        (0, [True, True, True, True]),
        (1, [False, False, True, True]),
        (2, [False, False, False, True]),
    ]:
        norm = {name: p.index_add(0, torch.tensor([j]), torch.rand(1, 4).double()) for name, p in theta["norm"].items()}
        after = predictions({**theta, "norm": norm})
        assert [not torch.equal(a, b) for a, b in zip(before, after)] == changed


def test_steps_beyond_the_trained_ones_repeat_the_last() -> None:
    _, theta = algo_and_theta("mamlpp", "conv4_strided", inner_steps=2)
    longer, _ = algo_and_theta("mamlpp", "conv4_strided", inner_steps=4)
    padded = {c: {n: p[[0, 1, 1, 1]] for n, p in theta[c].items()} for c in ("norm", "lr")}
    task = unstack(episodes(1))[0]
    found, expected = longer.task_metrics(theta, task), longer.task_metrics({**theta, **padded}, task)
    assert found["accuracy_by_step"].shape == (5,)
    phi, same = longer.adapt(theta, task.support), longer.adapt({**theta, **padded}, task.support)
    torch.testing.assert_close(leaves(phi), leaves(same), rtol=0, atol=0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_a_descent_leaves_the_clock_where_the_loop_set_it() -> None:
    algo, theta = algo_and_theta("mamlpp", "mlp", inner_steps=1)
    carried = traits_of(algo).carried
    optimizer = torch.optim.SGD([p for c in theta if c not in carried for p in theta[c].values()], lr=0.1)
    for step in (0, 1, 70_000):
        set_clock(theta, step)
        _, _, gradient = meta_gradient(algo, theta, episodes(3), execution="vmap")
        descend(theta, gradient, optimizer, SETTINGS, carried)
        assert outer_step(theta).item() == step


@pytest.mark.integration
def test_training_sets_the_clock_to_the_step_that_it_takes(metarun: Command, place: Path) -> None:
    answer = metarun(*TINY, "algo=mamlpp", "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    tensors, facts = checkpoint.load(RunFolder(place / "run").last)
    assert (tensors["theta"]["clock"]["step"].item(), facts["step"]) == (3, 4)
