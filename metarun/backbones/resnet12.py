"""ResNet-12, the residual network of most few-shot papers after 2018."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from metarun.backbones.conv4 import image_shape
from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Fraction
from metarun.config.traits import BackboneTraits
from metarun.core.norm import BatchNorm
from metarun.core.seeding import hash_uniform
from metarun.core.types import Backbone


class ResidualBlock(nn.Module):
    """Three 3x3 convolutions with batch norm, a 1x1 shortcut, LeakyReLU 0.1, 2x2 max-pool."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        widths = [inputs, outputs, outputs, outputs]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(BatchNorm(outputs) for _ in self.convs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.shortcut_norm = BatchNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        """[n, inputs, H, W] -> [n, outputs, H // 2, W // 2]."""
        shortcut = self.shortcut_norm(self.shortcut(x))
        for conv, norm in zip(self.convs[:-1], self.norms[:-1]):
            x = F.leaky_relu(norm(conv(x)), 0.1)
        x = self.norms[-1](self.convs[-1](x)) + shortcut
        return F.leaky_relu(F.max_pool2d(x, 2), 0.1)  # equal to pooling after it, and cheaper


@register("backbone", "resnet12", BackboneTraits(pictures=True))
@dataclass(eq=False)
class ResNet12(Backbone):
    """Four residual blocks of three convolutions each, then the mean over space (Lee et al. 2019, MetaOptNet).

    "Meta-Learning with Differentiable Convex Optimization", https://arxiv.org/abs/1904.03758: 64, 160, 320, 640
    filters, weights from a normal of variance 2 / fan-out. Unlike there, features are averaged over space, as in most
    papers since (84x84 gives 640 features instead of 16,000).

    With a `drop_rate` training drops features: single ones after the first two blocks, squares after the last two
    (DropBlock). Each picture's number determines which, so nothing is random within a task, and a picture keeps its
    mask through all inner steps. The rate is constant; in the authors' code it rises over 40,000 steps.
    """

    filters: list[Count]  # of each block
    drop_rate: Fraction
    drop_size: Count  # side of the squares
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        if len(self.filters) != 4:
            raise ConfigError(f"backbone.filters has {len(self.filters)} numbers: it must have 4, one for each block")
        if self.drop_rate == 1:
            raise ConfigError("backbone.drop_rate is 1: no feature would be left; use less, as 0.1")
        self.numbered = self.drop_rate > 0
        self.channels, _ = image_shape("resnet12", self.input_shape, smallest=16)
        self.blocks = nn.Sequential(*(ResidualBlock(i, o) for i, o in pairwise([self.channels, *self.filters])))
        for parameter in self.parameters():
            if parameter.dim() == 4:
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
        self.modulated = ("blocks.2.norms.2.weight", "blocks.2.norms.2.bias")
        self.feature_shape = (self.filters[-1],)
        self.feature_size = self.filters[-1]

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C, S, S] -> [n, filters[-1]]. Drops features if x is [n, C + 1, S, S], with numbers of pictures."""
        x, numbers = x[:, : self.channels], x[:, self.channels :, 0, 0]
        for i, block in enumerate(self.blocks):
            x = block(x)
            if numbers.shape[1]:
                x = drop_block(x, numbers[:, 0] * len(self.blocks) + i, self.drop_rate, self.drop_size if i > 1 else 1)
        return x.mean((-2, -1))


def drop_block(x: Tensor, numbers: Tensor, rate: float, size: int) -> Tensor:
    """Set about `rate` of x [n, C, H, W] to zero, in squares of `size`, and scale up the rest.

    The whole numbers `numbers` [n] determine where. Ghiasi, Lin, Le, "DropBlock", NeurIPS 2018,
    https://arxiv.org/abs/1810.12890, Algorithm 1, with separate squares in every channel.
    """
    n, channels, height, width = x.shape
    size = min(size, height, width)
    places = height - size + 1, width - size + 1  # of a square's corner
    corners = hash_uniform(channels * math.prod(places), numbers).view(n, channels, *places)  # uniform in -1..1
    gamma = rate / size**2 * height * width / math.prod(places)  # Eq. 1
    dropped = F.max_pool2d(F.pad((corners < 2 * gamma - 1).to(x.dtype), 4 * (size - 1,)), size, stride=1)
    kept = 1 - dropped
    return x * kept * (kept.numel() / kept.sum().clamp(min=1))
