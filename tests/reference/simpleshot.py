from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss

SETTINGS = {"centred": True, "norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, centred: bool) -> Tensor:
    """Query by query, class by class. No averages over training tasks are there: the centre is the support's mean."""
    support, query = episode
    z_support, z_query = features(backbone_name, theta, support.x), features(backbone_name, theta, query.x)
    centre = sum(z_support) / len(z_support) if centred else torch.zeros_like(z_support[0])
    directions = torch.stack([unit(z - centre) for z in z_support])
    means = [directions[support.y == k].mean(0) for k in range(int(support.y.max()) + 1)]
    logits = [torch.stack([-((unit(z - centre) - mean) ** 2).sum() for mean in means]) for z in z_query]
    return loss(torch.stack(logits), query.y)


def unit(z: Tensor) -> Tensor:
    """z / |z|; what is all zero remains so."""
    return z / (z @ z).sqrt() if z.any() else z
