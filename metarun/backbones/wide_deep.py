"""A linear map beside hidden layers, for recommendation.

Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems", https://arxiv.org/abs/1606.07792. Their linear
part is the inputs themselves and their products; here it is a map that is learned, which sets how far each is adapted.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.core.types import Backbone


@register("backbone", "wide_deep")
@dataclass(eq=False)
class WideDeep(Backbone):
    """Features of a linear map, and of hidden layers of the given widths with ReLU; Xavier weights, zero biases."""

    wide: Count
    hidden: list[Count]
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        inputs = math.prod(self.input_shape)
        self.map = nn.Linear(inputs, self.wide, bias=False)
        self.layers = nn.ModuleList(nn.Linear(i, o) for i, o in pairwise([inputs, *self.hidden]))
        for name, parameter in self.named_parameters():
            (nn.init.xavier_uniform_ if name.endswith("weight") else nn.init.zeros_)(parameter)
        self.modulated = ("layers.0.bias",) if self.hidden else ()
        self.feature_size = self.wide + (self.hidden[-1] if self.hidden else 0)
        self.feature_shape = (self.feature_size,)

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, *input_shape] -> [n, wide + hidden[-1]]."""
        x = x.flatten(1)
        deep = x
        for layer in self.layers:
            deep = F.relu(layer(deep))
        return torch.cat([self.map(x), deep], -1) if self.hidden else self.map(x)
