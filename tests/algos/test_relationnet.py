"""Relation networks: scores and loss of a net whose weights are set by hand; its shapes in the paper."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from metarun.algos.relationnet import Relation, RelationNet
from metarun.config.errors import ConfigError
from metarun.config.registry import build
from metarun.core.types import Backbone, Episode, Examples, TaskSpec
from tests.support.tiny import algo_and_theta


@dataclass(eq=False)
class Pixels(Backbone):
    """An image is its own map."""

    def __post_init__(self) -> None:
        super().__init__()
        self.feature_shape, self.feature_size = (1, 1, 1), 1

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)


def by_hand() -> tuple[RelationNet, dict]:
    """1x1 maps of one channel; the relation module adds (class + query), normalises, and squashes twice.

    Convolutions hold a 1 at the centre for either input, norm layers their initial 1 and 0; layers 2 v and 3 v - 1.
    """
    algo = RelationNet(hidden=1, norm="batch", backbone=Pixels(), spec=TaskSpec("classification", (1, 1, 1), 2))
    theta = {c: {n: p.double() for n, p in params.items()} for c, params in algo.init().items()}
    relation = theta["relation"]
    for i in (0, 1):
        relation[f"convs.{i}.weight"].zero_()[..., 1, 1] = 1
    relation["layers.0.weight"].fill_(2)
    relation["layers.0.bias"].fill_(0)
    relation["layers.1.weight"].fill_(3)
    relation["layers.1.bias"].fill_(-1)
    return algo, theta


def normalised(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    var = sum((v - mean) ** 2 for v in values) / len(values)
    return [(v - mean) / math.sqrt(var + 1e-5) for v in values]


def images(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def expected_scores() -> list[float]:
    """Classes sum to 1 + 2 = 3 and 4 + 5 = 9; with queries 0.5 and -2 their sums are 3.5, 9.5, 1 and 7."""
    v = [max(x, 0.0) for x in normalised([3.5, 9.5, 1.0, 7.0])]
    v = [max(x, 0.0) for x in normalised(v)]
    return [1 / (1 + math.exp(1 - 3 * 2 * x)) for x in v]


def test_relation_scores_and_their_squared_error_by_hand() -> None:
    algo, theta = by_hand()
    support = Examples(images(1, 4, 2, 5), torch.tensor([0, 1, 0, 1]))
    query = Examples(images(0.5, -2), torch.tensor([1, 0]))
    phi = algo.adapt(theta, support)
    assert phi.flatten().tolist() == [3.0, 9.0]  # sums, not means
    expected = expected_scores()
    assert algo.predict(theta, phi, query.x).flatten().tolist() == pytest.approx(expected, abs=1e-12)
    loss, metrics = algo.task_loss(theta, Episode(support, query))
    wanted = (0.0, 1.0, 1.0, 0.0)
    assert loss.item() == pytest.approx(sum((s - w) ** 2 for s, w in zip(expected, wanted)) / 4, abs=1e-12)
    assert metrics["accuracy"].item() == 0.5  # class 1 scores higher with either query


@pytest.mark.parametrize(
    ("side", "shape", "flat"), [(28, (64, 5, 5), 64), (84, (64, 19, 19), 576)], ids=["omniglot", "miniimagenet"]
)
def test_shapes_are_those_of_the_paper(side: int, shape: tuple[int, ...], flat: int) -> None:
    backbone = build("backbone", {"name": "conv4_relation", "filters": 64}, input_shape=(3, side, side))
    assert backbone.feature_shape == shape
    assert backbone(torch.rand(2, 3, side, side)).shape == (2, backbone.feature_size)
    relation = Relation(shape, 8)
    assert relation.layers[0].weight.shape == (8, flat)
    assert relation(torch.rand(3, 128, *shape[1:])).shape == (3,)


def test_the_order_of_classes_is_that_of_the_labels() -> None:
    """Swapping two classes' labels swaps their scores."""
    algo, theta = algo_and_theta("relationnet", "conv4_relation")
    x, query = torch.rand(2, 3, 1, 16, 16, dtype=torch.float64)
    one, other = (algo.adapt(theta, Examples(x, torch.tensor(y))) for y in ([0, 1, 2], [1, 0, 2]))
    scores, swapped = algo.predict(theta, one, query), algo.predict(theta, other, query)
    torch.testing.assert_close(scores[:, [1, 0, 2]], swapped)


def test_a_backbone_without_maps_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"compares maps \[C, S, S\], and this backbone has features \[4\]"):
        algo_and_theta("relationnet", "conv4_strided")
