"""The inner loop is `torch.optim.Adam` on leaves, whose state was put there from theta."""

from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, loss, predict

SETTINGS = {"inner_lr": 0.1, "inner_steps": 4, "inner_batch": 4, "beta2": 0.9, "eps": 1e-8, "norm": "batch"}
EXACT = False  # the pull holds the adapted weights fixed, which depend on theta too
WEIGHTS = ("backbone", "norm", "head")


def plain_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    *,
    inner_lr: float,
    inner_steps: int,
    inner_batch: int,
    beta2: float,
    eps: float,
) -> Tensor:
    """1/2 |theta - phi|^2; for Adam's moments and step count, the same less its own value."""
    phi = {c: {name: p.detach().clone().requires_grad_() for name, p in theta[c].items()} for c in WEIGHTS}
    adam = torch.optim.Adam([p for c in WEIGHTS for p in phi[c].values()], inner_lr, (0.0, beta2), eps)
    for component in WEIGHTS:
        for name, p in phi[component].items():
            moment = theta["moments"][f"{component}.{name}"].detach().clone()
            step = theta["adam"]["steps"].detach().clone()
            adam.state[p] = {"step": step, "exp_avg": torch.zeros_like(p), "exp_avg_sq": moment}
    for rows in minibatches(episode.support.y, inner_steps, inner_batch):
        adam.zero_grad()
        loss(predict(backbone_name, phi, episode.support.x[rows]), episode.support.y[rows]).backward()
        adam.step()

    pull = torch.tensor(0.0, dtype=torch.float64)
    handed_on = torch.tensor(0.0, dtype=torch.float64)
    for component in WEIGHTS:
        for name, p in phi[component].items():
            pull = pull + ((theta[component][name] - p.detach()) ** 2).sum() / 2
            moment, state = theta["moments"][f"{component}.{name}"], adam.state[p]
            handed_on = handed_on + ((moment - state["exp_avg_sq"]) ** 2).sum() / 2
    handed_on = handed_on + (theta["adam"]["steps"] - state["step"]) ** 2 / 2
    scalar: Tensor = pull + handed_on - handed_on.detach()
    return scalar


def minibatches(y: Tensor, steps: int, size: int) -> list[list[int]]:
    """Row numbers: the first example of each class, then the second of each ...; and again from the start."""
    if y.is_floating_point():
        order = list(range(len(y)))
    else:
        members = [[i for i in range(len(y)) if y[i] == k] for k in range(int(y.max()) + 1)]
        order = [row for rows in zip(*members) for row in rows]
    return [[order[(step * size + i) % len(order)] for i in range(size)] for step in range(steps)]
