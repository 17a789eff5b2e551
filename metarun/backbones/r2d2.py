"""The wide convolutional network of R2-D2."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.backbones.conv4 import image_shape
from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import BackboneTraits
from metarun.core.norm import BatchNorm
from metarun.core.types import Backbone


@register("backbone", "r2d2", BackboneTraits(pictures=True))
@dataclass(eq=False)
class R2D2Net(Backbone):
    """Four blocks of 3x3 convolution, batch norm, 2x2 max-pool and leaky ReLU; features are those of the last two.

    Bertinetto et al. 2019, and their code: the last pool has stride 1, and the third block's output is pooled once
    more with stride 1 to have the same size. Filters 96, 192, 384, 512 give 3,584 features for 28x28 images and 72,576
    for 84x84. Their dropout (0.1 on miniImageNet, 0 on Omniglot) is left out.
    """

    filters: list[Count]
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        if len(self.filters) != 4:
            raise ConfigError(f"backbone.filters has {len(self.filters)} numbers: it must have 4, one for each block")
        channels, side = image_shape("r2d2", self.input_shape, smallest=16)
        widths = [channels, *self.filters]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, padding=1, bias=False) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(BatchNorm(o) for o in self.filters)
        self.modulated = ("norms.2.weight", "norms.2.bias")
        self.feature_shape = (sum(self.filters[2:]), side // 8 - 1, side // 8 - 1)
        self.feature_size = math.prod(self.feature_shape)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C, S, S] -> [n, feature_size]."""
        outputs = []
        for conv, norm, stride in zip(self.convs, self.norms, (2, 2, 2, 1)):
            x = F.leaky_relu(F.max_pool2d(norm(conv(x)), 2, stride), 0.1)
            outputs.append(x)
        return torch.cat([F.max_pool2d(outputs[2], 2, 1), outputs[3]], dim=1).flatten(1)
