"""Fast weights example by example and coordinate by coordinate of a tensor, by torch.autograd."""

from typing import Any

import torch
from torch import Tensor

from tests.reference.matchingnet import lstm
from tests.reference.plain import Theta, features, loss

BACKBONES = ("conv4", "conv4_strided", "koch", "mlp")
SETTINGS = {"hidden": 3, "norm": "batch"}
EXACT = False  # the gradients that fast weights are made of count as constants


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, hidden: int) -> Tensor:
    support, query = episode
    z = features(backbone_name, theta, support.x)
    z_key = features(backbone_name, key_network(theta), support.x)
    task = task_weights(theta, z_key, support.y)
    fast = [example_weights(theta, z_i, y_i) for z_i, y_i in zip(z, support.y)]

    def key(z_i: Tensor) -> Tensor:
        w = theta["key"]
        return w["0.weight"] @ z_i + w["0.bias"] + task["0.weight"] @ z_i + task["0.bias"]

    keys = [key(z_i) for z_i in z_key]
    rows = []
    for z_i, z_k in zip(features(backbone_name, theta, query.x), features(backbone_name, key_network(theta), query.x)):
        r = key(z_k)
        likeness = torch.stack([r @ k / ((r @ r) * (k @ k)).sqrt() for k in keys]).exp()
        mixed = {name: sum(a * w[name] for a, w in zip(likeness / likeness.sum(), fast)) for name in theta["base"]}
        h = sum((w["0.weight"] @ z_i + w["0.bias"]).clamp(min=0) for w in (theta["base"], mixed))
        rows.append(sum(w["1.weight"] @ h + w["1.bias"] for w in (theta["base"], mixed)))
    return loss(torch.stack(rows), query.y)


def key_network(theta: Theta) -> Theta:
    return {"backbone": theta["key_backbone"], "norm": theta["key_norm"]}


def logits(w: dict[str, Tensor], z: Tensor) -> Tensor:
    return (z @ w["0.weight"].T + w["0.bias"]).clamp(min=0) @ w["1.weight"].T + w["1.bias"]


def example_weights(theta: Theta, z: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Of one example, from the gradient of its own loss."""
    own = loss(logits(theta["base"], z.detach()[None]), y[None])
    found = {}
    for name, g in zip(theta["base"], torch.autograd.grad(own, list(theta["base"].values()))):
        h = read(g)
        for i in range(3):
            m = theta["example_generator"]
            h = h @ m[f"{i}.weight"].T + m[f"{i}.bias"]
            h = h.clamp(min=0) if i < 2 else h
        found[name] = h[..., 0]
    return found


def task_weights(theta: Theta, z: Tensor, y: Tensor) -> dict[str, Tensor]:
    """From gradients on five chunks, of which the first are larger by one where five do not divide the support."""
    cell = {name.removeprefix("cell."): p for name, p in theta["task_generator"].items() if name.startswith("cell.")}
    out = theta["task_generator"]
    names, count = ("0.weight", "0.bias"), min(5, len(y))
    sizes = [len(y) // count + (i < len(y) % count) for i in range(count)]
    seen, start = [], 0
    for size in sizes:
        rows = slice(start, start + size)
        own = loss(logits(theta["key"], z.detach()[rows]), y[rows])
        seen.append([read(g) for g in torch.autograd.grad(own, [theta["key"][name] for name in names])])
        start += size
    found = {}
    for k, name in enumerate(names):
        values = []
        for coordinate in range(theta["key"][name].numel()):
            h = c = torch.zeros(20, dtype=z.dtype)
            for codes in seen:
                h, c = lstm(cell, "", codes[k].reshape(-1, 2)[coordinate], h, c)
            values.append((out["out.weight"] @ h + out["out.bias"])[0])
        found[name] = torch.stack(values).view_as(theta["key"][name])
    return found


def read(g: Tensor) -> Tensor:
    """log |g| / 7 and the sign, or where it is below e^-7, -1 and e^7 g: [...] -> [..., 2]."""
    e7 = torch.tensor(7.0, dtype=g.dtype).exp()
    numbers = [[v.abs().log() / 7, v.sign()] if v.abs() > 1 / e7 else [-torch.ones_like(v), e7 * v] for v in g.view(-1)]
    return torch.stack([torch.stack(pair) for pair in numbers]).view(*g.shape, 2)
