from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, loss, predict

SETTINGS = {"inner_lr": 0.3, "decay": 0.5, "inner_steps": 3, "norm": "batch"}


def plain_loss(
    backbone_name: str, theta: Theta, episode: Any, *, inner_lr: float, decay: float, inner_steps: int
) -> Tensor:
    """Layer by layer; what generates the rates is written out."""
    support, query = episode
    phi = {component: theta[component] for component in ("backbone", "norm", "head")}
    names = [(component, name) for component in ("backbone", "head") for name in phi[component]]
    g = theta["generator"]
    for j in range(inner_steps):
        weights = [phi[component][name] for component, name in names]
        gradient = torch.autograd.grad(
            loss(predict(backbone_name, phi, support.x), support.y), weights, create_graph=True
        )
        state = torch.stack([p.sum() / p.numel() for p in (*weights, *gradient)])
        hidden = (g["0.weight"] @ state + g["0.bias"]).clamp(min=0)
        numbers = g["1.weight"] @ hidden + g["1.bias"]
        stepped = {component: dict(params) for component, params in phi.items()}
        for i, ((component, name), p, slope) in enumerate(zip(names, weights, gradient)):
            alpha = numbers[i] * theta["lr"][f"{component}.{name}"][j]
            beta = numbers[len(names) + i] * theta["decay"][f"{component}.{name}"][j]
            stepped[component][name] = p - beta * p - alpha * slope
        phi = stepped
    return loss(predict(backbone_name, phi, query.x), query.y)
