"""Meta Networks: fast weights against a loop over examples, attention and layer augmentation by hand."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from metarun.algos.metanet import Memory
from metarun.core.batch import unstack
from metarun.core.types import Examples, Theta
from metarun.engine.gradient import meta_gradient
from tests.reference.metanet import example_weights, key_network, task_weights
from tests.reference.plain import features
from tests.support.tiny import algo_and_theta, episodes


@pytest.mark.parametrize("shots", [6, 5, 2])
def test_fast_weights_are_those_of_a_loop_over_examples_and_chunks(shots: int) -> None:
    """Six examples are chunks of 2, 1, 1, 1, 1; two are two chunks."""
    algo, theta = algo_and_theta("metanet", "mlp")
    task = unstack(episodes(1))[0]
    support = Examples(task.support.x[:shots], task.support.y[:shots])
    phi = algo.adapt(theta, support)
    z = features("mlp", theta, support.x)
    for i in range(shots):
        expected = example_weights(theta, z[i], support.y[i])
        torch.testing.assert_close({name: p[i] for name, p in phi.fast.items()}, expected, rtol=1e-9, atol=1e-12)
    z_key = features("mlp", key_network(theta), support.x)
    torch.testing.assert_close(phi.task, task_weights(theta, z_key, support.y), rtol=1e-9, atol=1e-12)


def test_a_query_with_the_key_of_one_example_among_opposites_has_mostly_its_weights() -> None:
    """Cosines 1 and -1 weigh e^2 to 1. The hidden layer adds relu(W h) and relu(W* h), the last one W h and W* h."""
    algo, theta = algo_and_theta("metanet", "mlp", hidden=2)
    x = episodes(1).query.x[0][:3]
    r = algo.key(
        theta, (still := {n: torch.zeros_like(theta["key"][n]) for n in ("0.weight", "0.bias")}), key_z(algo, theta, x)
    )
    fast = {name: torch.stack([p, -p]) for name, p in theta["base"].items()}
    predicted = torch.cat(
        [algo.predict(theta, Memory(torch.stack([3 * r[i], -r[i]]), fast, still), x)[i : i + 1] for i in range(3)]
    )
    share = (torch.tensor(2.0).double().exp() - 1) / (torch.tensor(2.0).double().exp() + 1)  # W* = share W
    w, z = theta["base"], algo.features(theta, x)
    h = F.relu(F.linear(z, w["0.weight"], w["0.bias"])) * (1 + share)
    expected = F.linear(h, w["1.weight"], w["1.bias"]) * (1 + share)
    torch.testing.assert_close(predicted, expected)


def key_z(algo: Any, theta: Theta, x: torch.Tensor) -> torch.Tensor:
    z: torch.Tensor = algo.features(theta, x, "key_")
    return z


def test_all_is_learned_but_the_layer_that_only_gradients_pass() -> None:
    algo, theta = algo_and_theta("metanet", "mlp")
    _, _, gradient = meta_gradient(algo, theta, episodes(2), execution="vmap")
    still = {f"{c}.{n}" for c, params in gradient.items() for n, g in params.items() if g.abs().max() == 0}
    assert still == {"key.1.weight", "key.1.bias"}
