from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.plain import Theta, features, loss

SETTINGS = {"prototype": "similarity", "sharpness": 3.0, "norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, prototype: str, sharpness: float) -> Tensor:
    support, query = episode
    z = features(backbone_name, theta, torch.cat([support.x, query.x]))
    z_support, z_query = z[: len(support.x)], z[len(support.x) :]
    classes = range(int(support.y.max()) + 1)
    prototypes = [plain_prototype(z_support[support.y == k], prototype, sharpness) for k in classes]
    logits = [torch.stack([-((z_i - c) ** 2).sum() for c in prototypes]) for z_i in z_query]
    return loss(torch.stack(logits), query.y)


def plain_prototype(z: Tensor, prototype: str, sharpness: float) -> Tensor:
    """Of one class's examples [K, D]."""
    if prototype == "median":
        columns = [sorted(column, key=lambda number: number.item()) for column in z.T]
        return torch.stack([(c[(len(c) - 1) // 2] + c[len(c) // 2]) / 2 for c in columns])
    weights = []
    for i, one in enumerate(z):
        others = [F.cosine_similarity(one, other, dim=0) for j, other in enumerate(z) if j != i]
        weights.append((sharpness * sum(others, torch.zeros_like(one[0])) / max(len(others), 1)).exp())
    total = sum(weights, torch.zeros_like(z[0, 0]))
    return torch.stack([weight / total * one for weight, one in zip(weights, z)]).sum(0)
