"""Fully connected networks."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.core.norm import BatchNorm
from metarun.core.types import Backbone


@register("backbone", "mlp")
@dataclass(eq=False)
class MLP(Backbone):
    """Hidden layers of the given widths with ReLU, with or without batch norm; images are flattened.

    Finn et al. 2017: widths 40, 40 without norm for the sinusoid; 256, 128, 64, 64 with norm for Omniglot; weights
    from a truncated normal (std 0.01), biases zero.
    """

    hidden: list[Count]
    batch_norm: bool
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        widths = [math.prod(self.input_shape), *self.hidden]
        self.layers = nn.ModuleList(nn.Linear(i, o, bias=not self.batch_norm) for i, o in pairwise(widths))
        self.norms = nn.ModuleList(BatchNorm(o) if self.batch_norm else nn.Identity() for o in self.hidden)
        for name, parameter in self.layers.named_parameters():
            if name.endswith("weight"):
                nn.init.trunc_normal_(parameter, std=0.01)
            else:
                nn.init.zeros_(parameter)
        first = ("norms.0.weight", "norms.0.bias") if self.batch_norm else ("layers.0.bias",)
        self.modulated = first if self.hidden else ()
        self.feature_shape = (widths[-1],)
        self.feature_size = widths[-1]

    def head(self, outputs: int) -> nn.Linear:
        layer = super().head(outputs)
        nn.init.trunc_normal_(layer.weight, std=0.01)
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, *input_shape] -> [n, hidden[-1]]."""
        x = x.flatten(1)
        for layer, norm in zip(self.layers, self.norms):
            x = F.relu(norm(layer(x)))
        return x
