from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss

SETTINGS = {"distance": "cosine", "scale": 3.0, "fce": True, "processing_steps": 2, "norm": "running"}


def plain_loss(
    backbone_name: str, theta: Theta, episode: Any, *, distance: str, scale: float, fce: bool, processing_steps: int
) -> Tensor:
    """Support and query pass the network as one batch; a query's label is an attention-weighted mean of labels."""
    support, query = episode
    z = features(backbone_name, theta, torch.cat([support.x, query.x]))
    g, f = z[: len(support.x)], z[len(support.x) :]
    if fce:
        g = in_context(theta["support_context"], g)
        f = torch.stack([attending(theta["query_context"], f_i, g, processing_steps) for f_i in f])
    probabilities = []
    for f_i in f:
        if distance == "cosine":
            similarity = torch.stack([f_i @ g_j / (f_i @ f_i).sqrt() / (g_j @ g_j).sqrt() for g_j in g])
        else:
            similarity = torch.stack([-((f_i - g_j) ** 2).sum() for g_j in g])
        attention = (scale * similarity).exp() / (scale * similarity).exp().sum()
        probabilities.append(torch.stack([attention[support.y == k].sum() for k in range(int(support.y.max()) + 1)]))
    return loss(torch.stack(probabilities).log(), query.y)


def in_context(w: dict[str, Tensor], g: Tensor) -> Tensor:
    """g_i plus what an LSTM that has read g_1 .. g_i says, and one that has read g_n .. g_i."""
    rows = list(g)
    for cell, order in (("onward", range(len(g))), ("back", reversed(range(len(g))))):
        h, c = torch.zeros_like(g[0]), torch.zeros_like(g[0])
        for i in order:
            h, c = lstm(w, f"{cell}.", g[i], h, c)
            rows[i] = rows[i] + h
    return torch.stack(rows)


def attending(w: dict[str, Tensor], f: Tensor, g: Tensor, steps: int) -> Tensor:
    """The embedding of one query [D] after so many reads of the support [n, D]."""
    h, c = f, torch.zeros_like(f)
    for _ in range(steps):
        weights = torch.stack([h @ g_i for g_i in g]).exp()
        read = sum(weight * g_i for weight, g_i in zip(weights, g)) / weights.sum()
        said, c = lstm(w, "", torch.cat([f, read]), h, c)
        h = said + f
    return h


def lstm(w: dict[str, Tensor], cell: str, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Gates in PyTorch's order: input, forget, cell, output."""
    gates = w[f"{cell}weight_ih"] @ x + w[f"{cell}bias_ih"] + w[f"{cell}weight_hh"] @ h + w[f"{cell}bias_hh"]
    i, f, g, o = gates.view(4, -1)
    c = c / (1 + (-f).exp()) + g.tanh() / (1 + (-i).exp())
    return c.tanh() / (1 + (-o).exp()), c
