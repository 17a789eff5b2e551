"""A compiled or recorded meta-gradient is compared with the eager one before it is used."""

import logging
from typing import Any

import torch
from torch import Tensor

from metarun.config.errors import Failed

say = logging.getLogger(__name__)
TOLERANCE = {torch.float32: 1e-2, torch.float64: 1e-10}  # in float32 one ReLU on the other side is 1e-3


def shapes_of(leaves: list[Tensor]) -> tuple[Any, ...]:
    """The shapes and strides that a compiled or recorded program is good for."""
    return tuple((leaf.shape, leaf.stride()) for leaf in leaves)


def compare_gradients(whose: str, found: list[Tensor], expected: list[Tensor]) -> None:
    """Raise Failed if a meta-gradient differs from the eager one by more than rounding."""
    ours, eager = (torch.cat([g.detach().flatten() for g in gradient]) for gradient in (found, expected))
    difference = float((ours - eager).norm() / eager.norm())
    if not difference <= TOLERANCE[ours.dtype]:
        raise Failed(f"{whose} meta-gradient differs from the eager one by {difference:.1e} of its norm")
    say.debug("%s meta-gradient differs from the eager one by %.1e of its norm", whose, difference)
