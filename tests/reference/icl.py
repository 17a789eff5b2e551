import math
from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss
from tests.reference.snail import linear

SETTINGS = {"label_size": 4, "layers": 2, "heads": 2, "head_size": 3, "hidden": 5, "norm": "running"}


def plain_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    *,
    label_size: int,
    layers: int,
    heads: int,
    head_size: int,
    hidden: int,
) -> Tensor:
    """A sequence for each query, step by step and head by head."""
    support, query = episode
    w = theta["network"]
    z = features(backbone_name, theta, torch.cat([support.x, query.x]))
    classes = int(support.y.max()) + 1
    shown = []
    for z_i, y in zip(z, support.y):
        label = [math.sqrt(classes / (classes - 1)) * (float(y == k) - 1 / classes) for k in range(classes)]
        label += [0.0] * (label_size - classes)
        shown.append(torch.cat([z_i, w["scale"] * torch.tensor(label, dtype=z.dtype)]))
    logits = []
    for z_q in z[len(shown) :]:
        steps = [*shown[::-1], torch.cat([z_q, w["unknown"]])]  # the order means nothing
        for layer in range(layers):
            steps = read(w, f"layers.{layer}", steps, heads, head_size)
        logits.append(w["last.weight"] @ normed(w, "norm", steps[-1]))
    return loss(torch.stack(logits), query.y)


def normed(w: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / (centred.square().mean() + 1e-6).sqrt() * w[f"{name}.weight"] + w[f"{name}.bias"]


def read(w: dict[str, Tensor], layer: str, steps: list[Tensor], heads: int, size: int) -> list[Tensor]:
    parts = [linear(w, f"{layer}.read", normed(w, f"{layer}.norms.0", x)).view(3, heads, size) for x in steps]
    found = []
    for x, part in zip(steps, parts):
        values = []
        for h in range(heads):
            weights = torch.stack([part[0, h] @ other[1, h] / size**0.5 for other in parts]).exp()
            values.append(sum(a * other[2, h] for a, other in zip(weights, parts)) / weights.sum())
        x = x + linear(w, f"{layer}.write", torch.cat(values))
        inner = linear(w, f"{layer}.inner", normed(w, f"{layer}.norms.1", x))
        found.append(x + linear(w, f"{layer}.outer", inner * (1 + torch.erf(inner / 2**0.5)) / 2))
    return found
