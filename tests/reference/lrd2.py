from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss

SETTINGS = {"penalty": 0.7, "iterations": 3, "norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, penalty: float, iterations: int) -> Tensor:
    """For each class, Newton's steps w <- w - H^-1 g on the penalised logistic loss of that class or not."""
    support, query = episode
    z = features(backbone_name, theta, torch.cat([support.x, query.x]))
    z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], dim=1)
    x, x_query = z[: len(support.x)], z[len(support.x) :]
    strength = theta["logistic"]["log_penalty"].exp()
    logits = []
    for k in range(int(support.y.max()) + 1):
        w = torch.zeros(x.shape[1], dtype=x.dtype)
        for _ in range(iterations):
            p = 1 / (1 + torch.exp(-(x @ w)))
            gradient = x.T @ (p - (support.y == k).to(x.dtype)) + strength * w
            hessian = x.T @ torch.diag(p * (1 - p)) @ x + strength * torch.eye(len(w), dtype=x.dtype)
            w = w - torch.linalg.inv(hessian) @ gradient
        logits.append(x_query @ w)
    return loss(torch.stack(logits, dim=1), query.y)
