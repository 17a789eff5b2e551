"""The whole Hessian, and a direct solve."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, loss, predict

SETTINGS = {  # enough steps of conjugate gradient to solve its system, few inner ones
    "inner_lr": 0.05,
    "inner_steps": 3,
    "proximal": 20.0,  # with which the operator is positive definite
    "cg_steps": 40,
    "shift": 0.0,
    "damping": 0.0,
    "norm": "batch",
}
EXACT = False  # the implicit gradient is the loss's derivative only where the inner problem is solved
BACKBONES = ("conv4_flat",)  # a row of the Hessian for every weight takes time


def plain_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    *,
    inner_lr: float,
    inner_steps: int,
    proximal: float,
    cg_steps: int,
    shift: float,
    damping: float,
) -> Tensor:
    """The query loss, whose gradient is ((1 + shift) I + H / (proximal + damping))^-1 times its own at phi."""
    support, query = episode
    names = [(component, name) for component, params in theta.items() for name in params]
    start = [theta[component][name].detach() for component, name in names]

    def loss_at(weights: list[Tensor], examples: Any) -> Tensor:
        phi: Theta = {component: {} for component in theta}
        for (component, name), weight in zip(names, weights):
            phi[component][name] = weight
        return loss(predict(backbone_name, phi, examples.x), examples.y)

    phi = [p.clone().requires_grad_() for p in start]
    for _ in range(inner_steps):
        distance = sum(((p - p0) ** 2).sum() for p, p0 in zip(phi, start))
        gradient = torch.autograd.grad(loss_at(phi, support) + proximal / 2 * distance, phi)
        phi = [(p - inner_lr * g).detach().requires_grad_() for p, g in zip(phi, gradient)]

    slopes = torch.autograd.grad(loss_at(phi, support), phi, create_graph=True)
    rows = [torch.autograd.grad(entry, phi, retain_graph=True) for entry in vector(slopes)]
    hessian = torch.stack([vector(row) for row in rows])
    value = loss_at(phi, query)
    operator = (1 + shift) * torch.eye(len(hessian), dtype=hessian.dtype) + hessian / (proximal + damping)
    factor = torch.linalg.cholesky(operator)  # raises where it is not positive definite
    implicit = torch.cholesky_solve(vector(torch.autograd.grad(value, phi))[:, None], factor)[:, 0]
    moved = vector([theta[component][name] for component, name in names]) - vector(start)
    return value.detach() + (implicit * moved).sum()


def vector(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([p.reshape(-1) for p in tensors])
