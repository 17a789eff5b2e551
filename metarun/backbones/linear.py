"""A linear map, for features that another network has made."""

import math
from dataclasses import dataclass

from torch import Tensor, nn

from metarun.config.registry import register
from metarun.core.types import Backbone


@register("backbone", "linear")
@dataclass(eq=False)
class Linear(Backbone):
    """A square matrix and a bias, at first the identity and zero: training starts from the features as they are."""

    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        size = math.prod(self.input_shape)
        self.layer = nn.Linear(size, size)
        nn.init.eye_(self.layer.weight)
        nn.init.zeros_(self.layer.bias)
        self.modulated = ("layer.bias",)
        self.feature_shape = (size,)
        self.feature_size = size

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, *input_shape] -> [n, D] of D numbers each."""
        features: Tensor = self.layer(x.flatten(1))
        return features
