"""Meta-SGD: what its rates learn, and where they start."""

from pathlib import Path

import pytest
import torch

from metarun.cli.compose import compose
from metarun.config.errors import ConfigError
from metarun.config.load import load_settings, plain
from metarun.core.batch import unstack
from metarun.core.inner import draw_theta, named
from metarun.engine.build import Experiment
from tests.reference.plain import loss, predict
from tests.support.tiny import algo_and_theta, episodes


def test_the_gradient_of_a_rate_is_the_product_of_support_and_query_gradient() -> None:
    """After one step d L_Q(theta - alpha g_S) / d alpha = -g_S g_Q, element by element, with g_Q taken at phi."""
    algo, theta = algo_and_theta("metasgd", "conv4_strided", inner_steps=1)
    task = unstack(episodes(1))[0]
    query_loss, _ = algo.task_loss(theta, task)
    found = torch.autograd.grad(query_loss, list(theta["lr"].values()))

    weights = {name: theta[name.partition(".")[0]][name.partition(".")[2]] for name in theta["lr"]}
    support_loss = loss(predict("conv4_strided", theta, task.support.x), task.support.y)
    g_support = torch.autograd.grad(support_loss, list(weights.values()))
    phi = {
        component: {
            name: (p - theta["lr"][f"{component}.{name}"] * g_support[list(weights).index(f"{component}.{name}")])
            for name, p in theta[component].items()
        }
        for component in ("backbone", "head")
    }
    query_loss = loss(predict("conv4_strided", {**phi, "norm": theta["norm"]}, task.query.x), task.query.y)
    g_query = torch.autograd.grad(query_loss, list(named(phi).values()))
    expected = [-s * q for s, q in zip(g_support, g_query)]
    torch.testing.assert_close(list(found), expected, rtol=1e-9, atol=1e-12)
    assert all(g.abs().max() > 1e-6 for g in found)


def test_equal_rates_are_maml() -> None:
    algo, theta = algo_and_theta("metasgd", "mlp")
    theta["lr"] = {name: torch.full_like(rate, 0.3) for name, rate in theta["lr"].items()}
    maml, _ = algo_and_theta("maml", "mlp", inner_lr=0.3, inner_steps=2)
    task = unstack(episodes(1))[0]
    torch.testing.assert_close(algo.task_loss(theta, task)[0], maml.task_loss(theta, task)[0], rtol=1e-12, atol=0)


def test_rates_start_uniform_in_their_range_and_the_same_at_every_draw() -> None:
    algo, _ = algo_and_theta("metasgd", "conv4", lr_range=[0.005, 0.1])
    first = draw_theta(algo, 0)["lr"]
    drawn = torch.cat([rate.flatten() for rate in first.values()])
    assert 0.005 <= drawn.min() < 0.006
    assert 0.099 < drawn.max() <= 0.1
    kept = {name: rate.clone() for name, rate in first.items()}
    for rate in first.values():
        rate += 1  # as training would
    again = draw_theta(algo, 0)
    assert all(torch.equal(again["lr"][name], rate) for name, rate in kept.items())
    assert {name: rate.shape for name, rate in again["lr"].items()} == {
        f"{component}.{name}": p.shape for component in ("backbone", "head") for name, p in again[component].items()
    }


def test_rates_are_drawn_from_the_seed(place: Path) -> None:
    def rates(seed: int) -> torch.Tensor:
        torch.rand(1)  # what was drawn before does not matter
        settings = load_settings(plain(compose(["algo=metasgd", "dataset=sinusoid", f"seed={seed}", "device=cpu"])))
        return torch.cat([rate.flatten() for rate in Experiment.of(settings).initial_theta()["lr"].values()])

    assert torch.equal(rates(0), rates(0))
    assert not torch.equal(rates(0), rates(1))


@pytest.mark.parametrize("lr_range", [[0.1], [0.2, 0.1], [0.1, 0.2, 0.3]])
def test_a_range_is_two_numbers_in_order(lr_range) -> None:
    with pytest.raises(ConfigError, match=r"algo.lr_range is \[.*\]: it must be two numbers, the lower first"):
        algo_and_theta("metasgd", "mlp", lr_range=lr_range)
