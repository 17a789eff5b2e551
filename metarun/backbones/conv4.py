"""The four-block convolutional networks of the few-shot papers."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import BackboneTraits
from metarun.core.norm import BatchNorm
from metarun.core.types import Backbone


@register("backbone", "conv4", BackboneTraits(pictures=True))
@dataclass(eq=False)
class Conv4(Backbone):
    """Four blocks of 3x3 convolution, batch norm, 2x2 max-pool and ReLU, flattened (Vinyals 2016, Snell 2017).

    28x28 with 64 filters gives 64 features, 84x84 with 32 filters 800. Pooling before ReLU is the same function as
    after it, and cheaper. A convolution needs no bias before batch norm. In the authors' code of MAML, on miniImageNet,
    weights are Xavier and norm layers have a shift only and eps 1e-3; here weights are PyTorch's and norm layers scale.
    """

    filters: Count
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        channels, side = image_shape("conv4", self.input_shape, smallest=16)
        widths = [channels] + 4 * [self.filters]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(BatchNorm(self.filters) for _ in range(4))
        self.modulated = ("norms.2.weight", "norms.2.bias")
        self.feature_shape = (self.filters, side // 16, side // 16)
        self.feature_size = math.prod(self.feature_shape)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C, S, S] -> [n, feature_size]."""
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(F.max_pool2d(norm(conv(x)), 2))
        return x.flatten(1)


@register("backbone", "conv4_strided", BackboneTraits(pictures=True))
@dataclass(eq=False)
class Conv4Strided(Backbone):
    """Finn's Omniglot network: four 3x3 convolutions of stride 2, batch norm, ReLU; mean over space.

    Finn et al. 2017, appendix A.1, and the authors' code: norm layers shift but do not scale, eps 1e-3, Xavier
    weights. Here padding is symmetric; TensorFlow's SAME pads an even image at the far side only. Their last layer
    starts standard normal, and ours Xavier: at `experiment=maml/omniglot_5w1s` theirs validated at 91.3 % after 1,500
    steps, and ours at 95.1 %.
    """

    filters: Count
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        channels, _ = image_shape("conv4_strided", self.input_shape, smallest=4)
        widths = [channels] + 4 * [self.filters]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False) for i, o in pairwise(widths))
        for weight in self.convs.parameters():
            nn.init.xavier_uniform_(weight)
        self.norms = nn.ModuleList(BatchNorm(self.filters, scale=False, eps=1e-3) for _ in range(4))
        self.modulated = ("norms.2.bias",)
        self.feature_shape = (self.filters,)
        self.feature_size = self.filters

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C, S, S] -> [n, filters]."""
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
        return x.mean((-2, -1))


@register("backbone", "conv4_flat", BackboneTraits(pictures=True))
@dataclass(eq=False)
class Conv4Flat(Backbone):
    """Four 3x3 convolutions of stride 2, batch norm with scale and shift, ReLU; flattened: 28x28 gives 2x2 maps.

    The Omniglot network in the authors' code of Reptile and iMAML: Xavier weights, in iMAML's times 1.73, and eps 1e-3.
    Here padding is symmetric; in Reptile's code TensorFlow's SAME pads an even image at the far side only.
    """

    filters: Count
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        channels, side = image_shape("conv4_flat", self.input_shape, smallest=4)
        widths = [channels] + 4 * [self.filters]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False) for i, o in pairwise(widths))
        for weight in self.convs.parameters():
            nn.init.xavier_uniform_(weight)
        self.norms = nn.ModuleList(BatchNorm(self.filters, eps=1e-3) for _ in range(4))
        self.modulated = ("norms.2.weight", "norms.2.bias")
        self.feature_shape = (self.filters, math.ceil(side / 16), math.ceil(side / 16))
        self.feature_size = math.prod(self.feature_shape)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C, S, S] -> [n, feature_size]."""
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
        return x.flatten(1)


@register("backbone", "conv4_relation", BackboneTraits(pictures=True))
@dataclass(eq=False)
class Conv4Relation(Backbone):
    """Conv-4 with a large last map: padding only in the last two blocks, pooling only in the first two.

    Sung et al. 2018, https://arxiv.org/abs/1711.06025: 28x28 with 64 filters gives maps 64x5x5, 84x84 64x19x19.
    Weights from a normal distribution of variance 2 / fan-out, as in the authors' code.
    """

    filters: Count
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        channels, side = image_shape("conv4_relation", self.input_shape, smallest=10)
        widths = pairwise([channels] + 4 * [self.filters])
        self.convs = nn.ModuleList(
            nn.Conv2d(i, o, 3, padding=padding, bias=False) for (i, o), padding in zip(widths, (0, 0, 1, 1))
        )
        for weight in self.convs.parameters():
            nn.init.kaiming_normal_(weight, mode="fan_out")
        self.norms = nn.ModuleList(BatchNorm(self.filters) for _ in range(4))
        left = ((side - 2) // 2 - 2) // 2
        self.modulated = ("norms.2.weight", "norms.2.bias")
        self.feature_shape = (self.filters, left, left)
        self.feature_size = math.prod(self.feature_shape)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C, S, S] -> [n, feature_size]."""
        for block, (conv, norm) in enumerate(zip(self.convs, self.norms)):
            x = norm(conv(x))
            x = F.relu(F.max_pool2d(x, 2) if block < 2 else x)
        return x.flatten(1)


def image_shape(name: str, shape: tuple[int, ...], smallest: int) -> tuple[int, int]:
    """Return channels and side of a square image. Raises ConfigError for any other shape."""
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] < smallest:
        raise ConfigError(
            f"backbone={name} takes square images [C, S, S] with S at least {smallest}, "
            f"and this dataset has inputs {list(shape)}: choose another backbone (mlp takes any input)"
        )
    return shape[0], shape[1]
