"""The network of Koch's Siamese networks."""

from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import BackboneTraits
from metarun.core.types import Backbone


@register("backbone", "koch", BackboneTraits(pictures=True))
@dataclass(eq=False)
class Koch(Backbone):
    """Four convolutions with ReLU, pooled except for the last, and a sigmoid layer; no norm layers.

    Koch, Zemel, Salakhutdinov 2015 (ICML Deep Learning Workshop), figure 4: 64, 128, 128 and 256 filters of 10x10,
    7x7, 4x4 and 4x4 on images of 105x105, then 4,096 units. `filters` is the first layer's number; the others have 2,
    2 and 4 times as many. Initial weights are PyTorch's: with the paper's (convolutions N(0, 0.01) with biases
    N(0.5, 0.01), fully connected N(0, 0.2)) most units start saturated.
    """

    filters: Count
    kernels: list[Count]
    units: Count
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        if len(self.kernels) != 4 or len(self.input_shape) != 3:
            raise ConfigError(
                f"backbone=koch has four convolutions on images [C, S, S]; backbone.kernels is {self.kernels}, "
                f"and this dataset has inputs {list(self.input_shape)}"
            )
        sides = [self.input_shape[-1]]
        for kernel in self.kernels[:3]:
            sides.append((sides[-1] - kernel + 1) // 2)
        last = sides[-1] - self.kernels[3] + 1
        if last < 1:
            raise ConfigError(
                f"backbone.kernels is {self.kernels}: nothing is left of images {list(self.input_shape)}; "
                f"use dataset.image_size=105 as in the paper, or smaller kernels, for example [5,3,2,2] for 28"
            )
        widths = [self.input_shape[0], *(times * self.filters for times in (1, 2, 2, 4))]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, k) for (i, o), k in zip(pairwise(widths), self.kernels))
        self.last = nn.Linear(widths[-1] * last**2, self.units)
        self.feature_shape = (self.units,)
        self.feature_size = self.units

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, C, S, S] -> [n, units], each between 0 and 1."""
        for conv in self.convs[:3]:
            x = F.relu(F.max_pool2d(conv(x), 2))
        return torch.sigmoid(self.last(F.relu(self.convs[3](x)).flatten(1)))
