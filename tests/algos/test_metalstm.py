"""Meta-Learner LSTM: with its gates held still it is gradient descent, or nothing; how it reads a number."""

import math

import pytest
import torch

from metarun.core.batch import unstack
from metarun.core.inner import log_and_sign, select
from metarun.core.types import Theta
from tests.support.tiny import algo_and_theta, episodes, leaves


def held(theta: Theta, forget: float, enter: float) -> Theta:
    """Gates that see nothing and have these values before the sigmoid."""
    gates = {"forget": forget, "enter": enter}
    return theta | {
        gate: {"weight": torch.zeros_like(theta[gate]["weight"]), "bias": torch.tensor(bias).double()}
        for gate, bias in gates.items()
    }


@pytest.mark.parametrize("first_order", [True, False])
def test_open_gates_are_gradient_descent_and_closed_ones_no_update(first_order: bool) -> None:
    """Before the sigmoid 500 is 1 and -500 is 0; -log 9 is a rate of 0.1."""
    algo, theta = algo_and_theta("metalstm", "conv4_strided", first_order=first_order)
    task = unstack(episodes(1))[0]
    for enter, rate in [(500.0, 1.0), (-math.log(9), 0.1)]:
        maml, _ = algo_and_theta("maml", "conv4_strided", inner_lr=rate, inner_steps=3, first_order=first_order)
        opened = held(theta, 500.0, enter)
        torch.testing.assert_close(leaves(algo.adapt(opened, task.support)), leaves(maml.adapt(theta, task.support)))
        ours, theirs = (
            torch.autograd.grad(method.task_loss(given, task)[0], leaves(select(theta, "backbone", "head")))
            for method, given in ((algo, opened), (maml, theta))
        )
        torch.testing.assert_close(ours, theirs)
    start = leaves(select(theta, "backbone", "head"))
    torch.testing.assert_close(leaves(algo.adapt(held(theta, 500.0, -500.0), task.support)), start, rtol=0, atol=1e-12)
    erased = leaves(algo.adapt(held(theta, -500.0, -500.0), task.support))
    assert max(p.abs().max() for p in erased) < 1e-12


def test_it_starts_as_gradient_descent_with_a_small_rate() -> None:
    algo, _ = algo_and_theta("metalstm", "mlp")
    theta = {c: {n: p.double() for n, p in params.items()} for c, params in algo.init().items()}
    small = [p for c in ("reader", "forget", "enter") for n, p in theta[c].items() if n != "bias"]
    assert 0.009 < max(p.abs().max() for p in small) <= 0.01
    assert 4 <= theta["forget"]["bias"] <= 5
    assert -5 <= theta["enter"]["bias"] <= -4


def test_a_number_is_read_as_its_logarithm_and_sign_or_where_tiny_itself() -> None:
    g = torch.tensor([math.exp(-5), -1.0, 0.0, -math.exp(-12), math.exp(-9.99)], dtype=torch.float64)
    expected = [[-0.5, 1], [0, -1], [-1, 0], [-1, -math.exp(-2)], [-0.999, 1]]
    torch.testing.assert_close(log_and_sign(g, 10.0), torch.tensor(expected, dtype=torch.float64))
    g.requires_grad_()
    (slope,) = torch.autograd.grad(log_and_sign(g, 10.0).sum(), g)
    assert slope.isfinite().all()
