"""Stein steps of particles, and what a mixture of them predicts."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm as normal

from metarun.algos.bmaml import stein_directions
from metarun.core.batch import unstack
from metarun.core.objectives import measure_density
from tests.support.tiny import algo_and_theta, episodes


def test_two_particles_by_hand() -> None:
    """At 0 and 2 the median is 4, h = 4 / log 2, k = exp(-log 2) = 1/2; grad_{x_j} k(x_j, x_i) = 2/h (x_i - x_j) k."""
    found = stein_directions({"x": torch.tensor([0.0, 2.0])}, {"x": torch.tensor([3.0, -1.0])})
    repulsion = 2 * math.log(2) / 4 * 2 * 0.5
    expected = [(3 - 0.5 - repulsion) / 2, (1.5 - 1 + repulsion) / 2]
    torch.testing.assert_close(found["x"], torch.tensor(expected))


def test_many_steps_give_the_moments_of_a_normal_posterior() -> None:
    """For log p = -x^2 / 2 / v the particles come to have mean 0 and nearly the variance v."""
    generator = torch.Generator().manual_seed(0)
    x = {"x": 3 + 0.1 * torch.randn(50, generator=generator, dtype=torch.float64)}
    for _ in range(2000):
        x = {"x": x["x"] + 0.5 * stein_directions(x, {"x": -x["x"] / 4})["x"]}
    assert x["x"].mean().item() == pytest.approx(0, abs=0.02)
    assert x["x"].var().item() == pytest.approx(4, rel=0.1)


@pytest.mark.parametrize("kind", ["regression", "classification"])
def test_predictions_are_means_over_the_particles_networks(kind: str) -> None:
    algo, theta = algo_and_theta("bmaml", "mlp", kind)  # type: ignore[arg-type]
    task = unstack(episodes(1, kind))[0]  # type: ignore[arg-type]
    phi = algo.adapt(theta, task.support)
    each = []
    for m in range(algo.particles):
        one = {"particles": {name: p[m : m + 1] for name, p in phi["particles"].items()}}
        each.append(algo.outputs(theta, one, task.query.x)[0])
    found = algo.predict(theta, phi, task.query.x)
    if kind == "regression":
        torch.testing.assert_close(found, sum(each) / len(each))
    else:
        torch.testing.assert_close(found.exp(), sum(p.softmax(-1) for p in each) / len(each))


def test_the_density_of_a_mixture_is_scipys() -> None:
    generator = torch.Generator().manual_seed(0)
    means, y = torch.randn(3, 40, 1, generator=generator), 2 * torch.randn(40, 1, generator=generator)
    variances = torch.tensor([0.5, 1.0, 2.0])[:, None, None]
    found = measure_density(means, variances, y)
    parts = normal(means.numpy(), variances.sqrt().numpy())
    assert found["nll"].item() == pytest.approx(-float(np.log(parts.pdf(y.numpy()).mean(0)).mean()), rel=1e-5)
    below = parts.cdf(y.numpy()).mean(0)
    assert found["coverage"].item() == pytest.approx(((below > 0.025) & (below < 0.975)).mean())
