"""A compiled or recorded meta-gradient is compared with the eager one before it is used."""

import math
from typing import Any

import torch
from torch import Tensor

TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-10}  # in float32 one ReLU on the other side is 1e-3
NOISE = 3  # times the difference between two eager gradients, where that is more


def shapes_of(leaves: list[Tensor]) -> tuple[Any, ...]:
    """The shapes and strides that a compiled or recorded program is good for."""
    return tuple((leaf.shape, leaf.stride()) for leaf in leaves)


def find_difference(found: list[Tensor], eager: list[Tensor], again: list[Tensor]) -> str | None:
    """Say how a meta-gradient differs from the eager one, of which `again` is a second computation; None if it does so
    by rounding alone.
    """
    ours, first, second = (torch.cat([g.detach().flatten() for g in gradient]) for gradient in (found, eager, again))
    difference, noise, size = (float(x.norm()) for x in (ours - first, second - first, first))
    if difference <= max(TOLERANCE[ours.dtype] * size, NOISE * noise):
        return None
    share = difference / size if size else math.inf
    return f"its meta-gradient differs from the eager one by {share:.1e} of its norm"
