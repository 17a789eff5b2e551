"""What heads do to features before they compare them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core.inner import forward
from metarun.core.objectives import is_present
from metarun.core.types import Backbone, Theta

EPS = 1e-5  # as in PyTorch's norm layers


def find_directions(backbone: Backbone, theta: Theta, x: Tensor) -> Tensor:
    """The network's features, scaled to length 1. x: [n, *input] -> [n, D]."""
    return F.normalize(forward(backbone, (theta["backbone"], theta["norm"]), x), dim=-1)


def find_centre(backbone: Backbone, z: Tensor, y: Tensor) -> Tensor:
    """The mean feature over training tasks where a test uses such averages, elsewhere that of the support.

    z: [n, D], y: [n], the support's -> [D].
    """
    if backbone.centre is not None:
        return backbone.centre
    there = is_present(y).to(z.dtype)
    return there @ z / there.sum()


def standardise(backbone: Backbone, z: Tensor, seen: Tensor) -> Tensor:
    """Shift and scale each feature to mean 0 and variance 1: over training tasks where a test uses such averages,
    elsewhere over the features `seen` [m, D]. z: [n, D] -> [n, D].
    """
    if backbone.centre is None or backbone.variance is None:
        variance, centre = torch.var_mean(seen, dim=0, correction=0)
    else:
        centre, variance = backbone.centre, backbone.variance
    return (z - centre) * (variance + EPS).rsqrt()
