"""ResNet-12: its size as published; what it refuses. Its function is in the tests over all backbones."""

import pytest
import torch

from metarun.errors import ConfigError
from metarun.registry import build

FILTERS = [64, 160, 320, 640]


def test_size_is_the_published_one():
    """9 i o + 18 o^2 weights in a block's 3x3 convolutions, i o in the 1x1 one, 8 o in four norms: 12.4 million."""
    network = build("backbone", {"name": "resnet12", "filters": FILTERS}, input_shape=(3, 84, 84))
    pairs = zip([3, *FILTERS], FILTERS)
    assert sum(p.numel() for p in network.parameters()) == sum(10 * i * o + 18 * o**2 + 8 * o for i, o in pairs)
    assert sum(p.numel() for p in network.parameters()) == 12_424_320
    assert network.blocks(torch.zeros(2, 3, 84, 84)).shape == (2, 640, 5, 5)
    assert network.feature_size == 640


def test_weights_are_drawn_as_published():
    """Variance 2 / fan_out: of 64 filters of 3x3, 2 / 576."""
    torch.manual_seed(0)
    network = build("backbone", {"name": "resnet12", "filters": [64] * 4}, input_shape=(3, 16, 16))
    assert network.blocks[0].convs[1].weight.var().item() == pytest.approx(2 / 576, rel=0.03)


@pytest.mark.parametrize(
    ("filters", "shape", "message"),
    [
        (FILTERS, (1, 14, 14), "backbone=resnet12 takes square images [C, S, S] with S at least 16, and this dataset"),
        (FILTERS, (1,), "backbone=resnet12 takes square images [C, S, S] with S at least 16, and this dataset"),
        ([4, 4], (1, 28, 28), "backbone.filters has 2 numbers: it must have 4, one for each block"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(filters, shape, message):
    with pytest.raises(ConfigError) as error:
        build("backbone", {"name": "resnet12", "filters": filters}, input_shape=shape)
    assert str(error.value).startswith(message)
