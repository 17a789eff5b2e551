from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss
from tests.reference.simpleshot import unit

SETTINGS = {"beta": 2.0, "norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, beta: float) -> Tensor:
    """Each example of the support adds exp(-beta (1 - cos)) to its class."""
    support, query = episode
    z_support, z_query = features(backbone_name, theta, support.x), features(backbone_name, theta, query.x)
    classes = range(int(support.y.max()) + 1)
    logits = []
    for z in z_query:
        weights = torch.stack([(-beta * (1 - unit(z) @ unit(key))).exp() for key in z_support])
        logits.append(torch.stack([weights[support.y == k].sum() for k in classes]))
    return loss(torch.stack(logits), query.y)
