from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, loss, predict

BACKBONES = ("conv4", "conv4_strided", "koch", "mlp")  # an example at a time is slow
SETTINGS = {"inner_lr": 0.3, "inner_steps": 2, "transductive": True, "norm": "batch"}


def plain_loss(
    backbone_name: str, theta: Theta, episode: Any, *, inner_lr: float, inner_steps: int, transductive: bool
) -> Tensor:
    """Example by example, with the modulation of each weight of the learned losses written out."""
    support, query = episode
    phi = {component: theta[component] for component in ("backbone", "norm", "head")}
    names = [(component, name) for component in ("backbone", "head") for name in phi[component]]
    for j in range(inner_steps):
        weights = [phi[component][name] for component, name in names]
        means = [p.sum() / p.numel() for p in weights]
        if transductive:
            logits = predict(backbone_name, phi, torch.cat([support.x, query.x]))
        else:
            logits = predict(backbone_name, phi, support.x)
        ours, theirs = logits[: len(support.y)], logits[len(support.y) :]
        entropy = loss(ours, support.y)
        task = torch.stack([entropy, *means])
        one_hot = torch.eye(logits.shape[1], dtype=logits.dtype)
        rows = [torch.cat([task, row, one_hot[label]]) for row, label in zip(ours, support.y)]
        total = entropy + learned(theta, "support", j, even(torch.stack(rows)), even(task))
        if transductive:
            rows = []
            for row in theirs:
                p = row.exp() / row.exp().sum()
                rows.append(torch.cat([torch.stack(means), row, (p * p.log()).sum()[None]]))
            matrix = even(torch.stack(rows))
            total = total + learned(theta, "query", j, matrix, matrix.mean(0))
        gradient = torch.autograd.grad(total, weights, create_graph=True)
        stepped = {component: dict(params) for component, params in phi.items()}
        for (component, name), p, g in zip(names, weights, gradient):
            stepped[component][name] = p - inner_lr * g
        phi = stepped
    return loss(predict(backbone_name, phi, query.x), query.y)


def even(x: Tensor) -> Tensor:
    """Mean 0 and deviation 1 over all of it."""
    centred = x - x.sum() / x.numel()
    return centred / (((centred**2).sum() / (x.numel() - 1)).sqrt() + 1e-12)


def learned(theta: Theta, part: str, j: int, examples: Tensor, task: Tensor) -> Tensor:
    adapter = {name: p[j] for name, p in theta[f"{part}_adapter"].items()}
    hidden = (adapter["0.weight"] @ task + adapter["0.bias"]).clamp(min=0)
    numbers = adapter["1.weight"] @ hidden + adapter["1.bias"]
    w = {}
    for i, name in enumerate(("0.weight", "0.bias", "1.weight", "1.bias")):
        scale, shift = adapter["scale"][i] * numbers[i], adapter["shift"][i] * numbers[4 + i]
        w[name] = theta[f"{part}_loss"][name][j] * (1 + scale) + shift
    values = [w["1.weight"] @ (w["0.weight"] @ row + w["0.bias"]).clamp(min=0) + w["1.bias"] for row in examples]
    return torch.cat(values).mean()
