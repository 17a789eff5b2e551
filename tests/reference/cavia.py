from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, loss, predict

BACKBONES = ("conv4", "conv4_flat", "conv4_relation", "conv4_strided", "mlp", "r2d2")
SETTINGS = {"context_size": 3, "inner_lr": 0.5, "inner_steps": 2, "first_order": False, "norm": "batch"}


def plain_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    *,
    context_size: int,
    inner_lr: float,
    inner_steps: int,
    first_order: bool,
) -> Tensor:
    support, query = episode
    phi = torch.zeros(context_size, dtype=support.x.dtype, requires_grad=True)
    for _ in range(inner_steps):
        support_loss = loss(predict(backbone_name, modulated(theta, phi), support.x), support.y)
        (gradient,) = torch.autograd.grad(support_loss, [phi], create_graph=not first_order)
        phi = phi - inner_lr * gradient
    return loss(predict(backbone_name, modulated(theta, phi), query.x), query.y)


def modulated(theta: Theta, phi: Tensor) -> Theta:
    """Every parameter that theta has a map for, plus that map of the context."""
    moved = {c: dict(theta[c]) for c in ("backbone", "norm", "head")}
    for name, matrix in theta["context"].items():
        component = moved["norm"] if name in moved["norm"] else moved["backbone"]
        component[name] = component[name] + (matrix * phi).sum(1)
    return moved
