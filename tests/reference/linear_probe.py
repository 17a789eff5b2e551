from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss
from tests.reference.simpleshot import unit

SETTINGS = {"temperature": 3.0, "steps": 2, "lr": 0.02, "norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, temperature: float, steps: int, lr: float) -> Tensor:
    """Distances one by one, and PyTorch's formulas of Adam with autograd's gradient."""
    support, query = episode
    z_support, z_query = (
        torch.stack([unit(z) for z in features(backbone_name, theta, part.x)]) for part in (support, query)
    )
    weight = torch.stack([unit(z_support[support.y == k].mean(0)) for k in range(int(support.y.max()) + 1)])

    def logits(w: Tensor, b: Tensor, z: Tensor) -> Tensor:
        rows = [torch.stack([((z_i - unit(w_k)) ** 2).sum() + b_k for w_k, b_k in zip(w, b)]) for z_i in z]
        return -temperature * torch.stack(rows)

    start = [weight, torch.zeros(len(weight), dtype=weight.dtype)]
    w, b = adam(lambda w, b: loss(logits(w, b, z_support), support.y), start, lr, steps)
    return loss(logits(w, b, z_query), query.y)


def adam(objective: Any, values: list[Tensor], lr: float, steps: int) -> list[Tensor]:
    """Steps of Adam on all values; where all gradients are 0 nothing moves, and the root has no slope."""
    first = [torch.zeros_like(value) for value in values]
    second = [torch.zeros_like(value) for value in values]
    for step in range(1, steps + 1):
        values = [value if value.requires_grad else value.requires_grad_() for value in values]
        for i, gradient in enumerate(torch.autograd.grad(objective(*values), values, create_graph=True)):
            first[i] = 0.9 * first[i] + 0.1 * gradient
            second[i] = 0.999 * second[i] + 0.001 * gradient**2
        stepped = []
        for value, m, v in zip(values, first, second):
            root = (torch.where(v > 0, v, 1.0) / (1 - 0.999**step)).sqrt()
            stepped.append(value - lr * torch.where(v > 0, m / (1 - 0.9**step) / (root + 1e-8), 0.0))
        values = stepped
    return values
