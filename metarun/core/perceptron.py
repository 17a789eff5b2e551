"""Small fully connected networks inside of a method, with ReLU between their layers."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from metarun.core.inner import copy_weights
from metarun.core.types import Params


def perceptron(w: Params, x: Tensor) -> Tensor:
    """x: [..., inputs] -> [..., outputs]."""
    layers = sum(name.endswith(".weight") for name in w)
    for i in range(layers):
        x = F.linear(x, w[f"{i}.weight"], w.get(f"{i}.bias"))
        x = F.relu(x) if i < layers - 1 else x
    return x


def draw_perceptron(*widths: int, bias: bool = True) -> Params:
    """Weights as PyTorch's linear layers start."""
    layers = nn.ModuleList(nn.Linear(inputs, outputs, bias=bias) for inputs, outputs in pairwise(widths))
    return copy_weights(layers)
