from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss

SETTINGS = {"norm": "batch"}


NOTHING = torch.tensor(0.0)


def plain_loss(backbone_name: str, theta: Theta, episode: Any) -> Tensor:
    return loss(plain_logits(backbone_name, theta, episode), episode.query.y)


def plain_logits(backbone_name: str, theta: Theta, episode: Any) -> Tensor:
    """The logit of class k is the sum of cos(query, example) over the support examples of class k."""
    support, query = episode
    z_support, z_query = features(backbone_name, theta, support.x), features(backbone_name, theta, query.x)
    classes = range(int(support.y.max()) + 1)
    rows = []
    for z in z_query:
        cosines = [cosine(z, z_i) for z_i in z_support]
        rows.append(torch.stack([sum((c for c, y in zip(cosines, support.y) if y == k), NOTHING) for k in classes]))
    return torch.stack(rows)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Of features that are all zero it is zero."""
    if not a.any() or not b.any():
        return a.new_zeros(())
    return (a @ b) / (a.square().sum() * b.square().sum()).sqrt()
