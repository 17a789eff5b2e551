"""BOIL: the body is adapted and the last layer is not."""

import torch

from metarun.core.batch import unstack
from tests.support.tiny import algo_and_theta, episodes


def test_only_the_body_is_adapted_norm_layers_with_it() -> None:
    algo, theta = algo_and_theta("boil", "conv4")
    phi = algo.adapt(theta, unstack(episodes(1))[0].support)
    assert set(phi) == {"backbone", "norm"}
    moved = {f"{c}.{name}": (p - theta[c][name]).abs().max() for c, params in phi.items() for name, p in params.items()}
    assert min(moved.values()) > 1e-6


def test_without_weights_in_the_head_nothing_reaches_the_body() -> None:
    """dL/dfeatures = (softmax - y) W, so W = 0 leaves phi = theta, whatever the bias."""
    algo, theta = algo_and_theta("boil", "mlp")
    theta["head"]["weight"] = torch.zeros_like(theta["head"]["weight"])
    phi = algo.adapt(theta, unstack(episodes(1))[0].support)
    for component, params in phi.items():
        for name, p in params.items():
            assert torch.equal(p, theta[component][name])
