from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss
from tests.reference.simpleshot import unit

SETTINGS = {"alpha": 3.0, "temperature": 4.0, "steps": 3, "lr": 0.02, "transductive": True, "norm": "running"}


def plain_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    *,
    alpha: float,
    temperature: float,
    steps: int,
    lr: float,
    transductive: bool,
) -> Tensor:
    """Adam with autograd's gradient of the three terms, each written as a sum over examples and classes."""
    support, query = episode
    z_support, z_query = (
        torch.stack([unit(z) for z in features(backbone_name, theta, part.x)]) for part in (support, query)
    )

    def logits(w: Tensor, z: Tensor) -> Tensor:
        return torch.stack([torch.stack([-temperature / 2 * ((z_i - w_k) ** 2).sum() for w_k in w]) for z_i in z])

    def entropy(p: Tensor) -> Tensor:
        if alpha == 1:
            return -sum((p_k * p_k.log() for p_k in p), torch.zeros_like(p[0]))
        return (1 - sum((p_k**alpha for p_k in p), torch.zeros_like(p[0]))) / (alpha - 1)

    w = torch.stack([z_support[support.y == k].mean(0) for k in range(int(support.y.max()) + 1)])
    first = second = torch.zeros_like(w)
    for step in range(1, steps + 1):
        w = w if w.requires_grad else w.requires_grad_()
        value = loss(logits(w, z_support), support.y)
        if transductive:
            p = [row.softmax(0) for row in logits(w, z_query)]
            value = value - entropy(sum(p) / len(p)) + sum(entropy(p_i) for p_i in p) / len(p)
        (gradient,) = torch.autograd.grad(value, w, create_graph=True)
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        moved = second > 0  # where all gradients are 0 nothing moves, and the root has no slope
        root = (torch.where(moved, second, 1.0) / (1 - 0.999**step)).sqrt()
        w = w - lr * torch.where(moved, first / (1 - 0.9**step) / (root + 1e-8), 0.0)
    return loss(logits(w, z_query), query.y)
