"""Fully connected networks for policies."""

import math
from dataclasses import dataclass
from itertools import pairwise

from torch import Tensor, nn

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.core.types import Backbone


@register("backbone", "tanh")
@dataclass(eq=False)
class Tanh(Backbone):
    """Hidden layers of the given widths with tanh, Xavier weights and zero biases, as is usual for policies.

    Policies of `backbone=mlp`, whose weights start at a hundredth of that, learn to navigate three times as slowly.
    """

    hidden: list[Count]
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        widths = [math.prod(self.input_shape), *self.hidden]
        self.layers = nn.ModuleList(nn.Linear(inputs, outputs) for inputs, outputs in pairwise(widths))
        for name, parameter in self.layers.named_parameters():
            (nn.init.xavier_uniform_ if name.endswith("weight") else nn.init.zeros_)(parameter)
        self.modulated = ("layers.0.bias",)
        self.feature_shape = (widths[-1],)
        self.feature_size = widths[-1]

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, *input_shape] -> [n, hidden[-1]]."""
        x = x.flatten(1)
        for layer in self.layers:
            x = layer(x).tanh()
        return x
