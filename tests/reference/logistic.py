from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss
from tests.reference.simpleshot import unit

SETTINGS = {"penalty": 0.5, "iterations": 100, "norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, penalty: float, iterations: int) -> Tensor:
    """Newton's method on all weights and biases at once, whose steps are those of the whole Hessian.

    The minimum is where both end; `iterations` of the other solver mean nothing here.
    """
    support, query = episode
    z_support, z_query = (
        torch.stack([unit(z) for z in features(backbone_name, theta, part.x)]) for part in (support, query)
    )
    inputs = torch.cat([z_support, torch.ones_like(z_support[:, :1])], dim=1)
    w = fit(inputs, support.y, penalty)
    return loss(z_query @ w[:-1] + w[-1], query.y)


def fit(inputs: Tensor, y: Tensor, penalty: float) -> Tensor:
    """[n, d] with a last column of ones, [n] -> [d, N]. The last row is not penalised, but held at a mean of 0.

    The derivatives are written out, because a derivative of them is taken.
    """
    d = inputs.shape[1]
    classes = int(y.max()) + 1
    ridge = penalty * torch.eye(d, dtype=inputs.dtype)
    ridge[-1, -1] = 0
    level = torch.zeros(d, d, dtype=inputs.dtype)
    level[-1, -1] = 1  # the loss does not change if all biases grow alike: this settles by how much
    w = inputs.new_zeros(d, classes)
    for _ in range(8):
        p = torch.stack([row.softmax(0) for row in inputs @ w])
        excess = torch.stack([p_i - torch.eye(classes, dtype=p.dtype)[label] for p_i, label in zip(p, y)])
        gradient = inputs.T @ excess + ridge @ w
        hessian = torch.kron(ridge, torch.eye(classes, dtype=p.dtype)) + torch.kron(level, torch.ones_like(p.T @ p))
        for x_i, p_i in zip(inputs, p):
            hessian = hessian + torch.kron(torch.outer(x_i, x_i), p_i.diag() - torch.outer(p_i, p_i))
        w = w - torch.linalg.solve(hessian, gradient.flatten()).view(d, classes)
    return w
