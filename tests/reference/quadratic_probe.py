from typing import Any

import torch
from torch import Tensor

from tests.reference.linear_probe import adam
from tests.reference.plain import Theta, features, loss
from tests.reference.simpleshot import unit

SETTINGS = {"temperature": 0.5, "shrinkage": 0.3, "steps": 2, "lr": 0.02, "norm": "running"}


def plain_loss(
    backbone_name: str, theta: Theta, episode: Any, *, temperature: float, shrinkage: float, steps: int, lr: float
) -> Tensor:
    """Covariances as sums of outer products, and their inverses themselves."""
    support, query = episode
    z_support, z_query = (
        torch.stack([unit(z) for z in features(backbone_name, theta, part.x)]) for part in (support, query)
    )
    classes = [z_support[support.y == k] for k in range(int(support.y.max()) + 1)]

    def logits(means: Tensor, z: Tensor) -> Tensor:
        columns = []
        for mean, members in zip(means, classes):
            identity = torch.eye(len(mean), dtype=mean.dtype)
            spread = sum((torch.outer(m - mean, m - mean) for m in members), torch.zeros_like(identity))
            inverse = torch.linalg.inv((1 - shrinkage) / max(len(members) - 1, 1) * spread + shrinkage * identity)
            columns.append(-temperature * torch.stack([(z_i - mean) @ inverse @ (z_i - mean) for z_i in z]))
        return torch.stack(columns, dim=1)

    start = torch.stack([unit(members.mean(0)) for members in classes])
    (means,) = adam(lambda means: loss(logits(means, z_support), support.y), [start], lr, steps)
    return loss(logits(means, z_query), query.y)
