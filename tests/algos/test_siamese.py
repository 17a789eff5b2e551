"""Siamese networks: pairs by hand, one-shot by the best match, Koch's network in its published size."""

import math

import pytest
import torch
from torch import Tensor

from metarun.algos.siamese import Siamese
from metarun.config.errors import ConfigError
from metarun.config.registry import build
from metarun.core.types import Backbone, Episode, Examples, TaskSpec, Theta

SPEC = TaskSpec("classification", (2,), 2)


class Identity(Backbone):
    """Inputs [n, 2] are their own features."""

    feature_shape, feature_size = (2,), 2

    def forward(self, x: Tensor) -> Tensor:
        return x


def by_hand() -> tuple[Siamese, Theta]:
    """p = sigmoid(2 - |a_1 - b_1| - 3 |a_2 - b_2|)."""
    algo = Siamese(norm="running", backbone=Identity(), spec=SPEC)
    metric = {"weight": torch.tensor([[-1.0, -3.0]]).double(), "bias": torch.tensor([2.0]).double()}
    return algo, {"backbone": {}, "norm": {}, "metric": metric}


def examples(x: list[list[float]], y: list[int]) -> Examples:
    return Examples(torch.tensor(x, dtype=torch.float64), torch.tensor(y))


def test_pair_loss_by_hand() -> None:
    """Support (0, 0) of class 0 and (1, 1) of class 1. A query (1, 0) of class 0: logits 2 - 1 and 2 - 3.
    A query (2, 1) of class 1: logits 2 - 2 - 3 and 2 - 1."""
    algo, theta = by_hand()
    episode = Episode(examples([[0, 0], [1, 1]], [0, 1]), examples([[1, 0], [2, 1]], [0, 1]))
    loss, metrics = algo.task_loss(theta, episode)
    same = [math.log(1 + math.exp(-logit)) for logit in (1, 1)]
    different = [math.log(1 + math.exp(logit)) for logit in (-1, -3)]
    assert loss.item() == pytest.approx((sum(same) / 2 + sum(different) / 2) / 2, abs=1e-14)
    assert metrics["accuracy"].item() == 1.0


def test_either_kind_of_pair_weighs_half_however_many_there_are() -> None:
    """Three support images of class 0 and one of class 1, one query: its pairs' means, not their sum, count."""
    algo, theta = by_hand()
    episode = Episode(examples([[0, 0], [1, 0], [2, 0], [4, 0]], [0, 0, 0, 1]), examples([[0, 0]], [0]))
    same = [math.log(1 + math.exp(-(2 - distance))) for distance in (0, 1, 2)]
    different = math.log(1 + math.exp(2 - 4))
    loss, _ = algo.task_loss(theta, episode)
    assert loss.item() == pytest.approx((sum(same) / 3 + different) / 2, abs=1e-14)


def test_a_query_is_of_the_class_of_its_best_match() -> None:
    """Class 0 has the nearest image and the farthest: by the mean it would lose."""
    algo, theta = by_hand()
    phi = algo.adapt(theta, examples([[0, 0], [1, 0], [9, 0], [1, 1]], [0, 1, 0, 1]))
    assert algo.predict(theta, phi, torch.tensor([[0.25, 0.0]]).double()).tolist() == [[1.75, 1.25]]


def test_one_class_makes_no_pairs() -> None:
    with pytest.raises(ConfigError, match="ways is 1"):
        Siamese(norm="running", backbone=Identity(), spec=SPEC._replace(output_size=1))


def koch(side: int, kernels: list[int]) -> Backbone:
    values = {"name": "koch", "filters": 64, "kernels": kernels, "units": 4096}
    network: Backbone = build("backbone", values, input_shape=(1, side, side))
    return network


def test_kochs_network_has_the_published_shapes() -> None:
    network = koch(105, [10, 7, 4, 4])
    shapes = [tuple(p.shape) for name, p in network.named_parameters() if name.endswith("weight")]
    assert shapes == [(64, 1, 10, 10), (128, 64, 7, 7), (128, 128, 4, 4), (256, 128, 4, 4), (4096, 9216)]
    features = network(torch.rand(1, 1, 105, 105))
    assert features.shape == (1, 4096)
    assert 0 < features.min() < features.max() < 1


@pytest.mark.parametrize(
    ("side", "kernels", "message"),
    [(28, [10, 7, 4, 4], r"nothing is left of images \[1, 28, 28\]"), (105, [3, 3, 3], "has four convolutions")],
)
def test_kernels_that_do_not_fit_are_told(side: int, kernels: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        koch(side, kernels)
