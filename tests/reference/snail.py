from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss

SETTINGS = {"length": 7, "filters": 2, "attention": [[3, 2], [4, 3]], "norm": "running"}


def plain_loss(
    backbone_name: str, theta: Theta, episode: Any, *, length: int, filters: int, attention: list[list[int]]
) -> Tensor:
    """A sequence for each query: the support with its labels, then the query with none; step by step."""
    support, query = episode
    z = features(backbone_name, theta, torch.cat([support.x, query.x]))
    classes = int(support.y.max()) + 1
    labels = [torch.tensor([float(y == k) for k in range(classes)], dtype=z.dtype) for y in support.y]
    read = [torch.cat([z_i, label]) for z_i, label in zip(z, labels)]
    logits = []
    for z_q in z[len(read) :]:
        steps = [*read, torch.cat([z_q, torch.zeros(classes, dtype=z.dtype)])]
        block = 0
        for i, (key_size, _) in enumerate(attention):
            for dilation in (1, 2, 4) if i > 0 else ():  # as a length of 7 needs
                steps = convolved(theta["network"], f"blocks.{block}.conv", steps, dilation, filters)
                block += 1
            steps = attended(theta["network"], f"blocks.{block}", steps, key_size)
            block += 1
        logits.append(linear(theta["network"], "last", steps[-1]))
    return loss(torch.stack(logits), query.y)


def linear(w: dict[str, Tensor], layer: str, x: Tensor) -> Tensor:
    return w[f"{layer}.weight"] @ x + w[f"{layer}.bias"]


def convolved(w: dict[str, Tensor], layer: str, steps: list[Tensor], dilation: int, filters: int) -> list[Tensor]:
    found = []
    for t, x in enumerate(steps):
        before = steps[t - dilation] if t >= dilation else torch.zeros_like(x)
        both = linear(w, layer, torch.cat([before, x]))
        found.append(torch.cat([x, both[:filters].tanh() / (1 + (-both[filters:]).exp())]))
    return found


def attended(w: dict[str, Tensor], block: str, steps: list[Tensor], key_size: int) -> list[Tensor]:
    found = []
    for t, x in enumerate(steps):
        seen = steps[: t + 1]
        query = linear(w, f"{block}.query", x)
        weights = torch.stack([query @ linear(w, f"{block}.key", s) / key_size**0.5 for s in seen]).exp()
        values = sum(weight * linear(w, f"{block}.value", s) for weight, s in zip(weights, seen))
        found.append(torch.cat([x, values / weights.sum()]))
    return found
