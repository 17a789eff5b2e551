from math import exp
from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, loss, predict

BACKBONES = ("conv4_strided", "koch", "mlp")
SETTINGS = {"hidden": 3, "inner_steps": 3, "first_order": False, "norm": "batch"}


def plain_loss(
    backbone_name: str, theta: Theta, episode: Any, *, hidden: int, inner_steps: int, first_order: bool
) -> Tensor:
    """Tensor by tensor, each weight with its own memory."""
    support, query = episode
    names = [(component, name) for component in ("backbone", "head") for name in theta[component]]
    phi = {component: dict(theta[component]) for component in ("backbone", "norm", "head")}
    zero = [torch.zeros_like(theta[component][name]) for component, name in names]
    f, i = list(zero), list(zero)
    h, s = ([[torch.zeros_like(p) for _ in range(hidden)] for p in zero] for _ in range(2))
    for _ in range(inner_steps):
        weights = [phi[component][name] for component, name in names]
        value = loss(predict(backbone_name, phi, support.x), support.y)
        gradient = torch.autograd.grad(value, weights, create_graph=not first_order)
        value = value.detach() if first_order else value
        for k, ((component, name), c, g) in enumerate(zip(names, weights, gradient)):
            x = [feature.expand_as(c) for feature in in_two(value)] + in_two(g)
            h[k], s[k] = lstm(theta["reader"], x, h[k], s[k])
            f[k] = gate(theta["forget"], [*h[k], c, f[k]])
            i[k] = gate(theta["enter"], [*h[k], c, i[k]])
            phi[component][name] = f[k] * c - i[k] * g
    return loss(predict(backbone_name, phi, query.x), query.y)


def in_two(g: Tensor) -> list[Tensor]:
    size = g.abs()
    small = size <= exp(-10)
    log = torch.where(small, torch.ones_like(size), size).log() / 10
    return [torch.where(small, -torch.ones_like(g), log), torch.where(small, exp(10) * g, g.sign())]


def gate(w: dict[str, Tensor], seen: list[Tensor]) -> Tensor:
    return 1 / (1 + (-sum(w["weight"][k] * feature for k, feature in enumerate(seen)) - w["bias"]).exp())


def lstm(w: dict[str, Tensor], x: list[Tensor], h: list[Tensor], s: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Gates in PyTorch's order: input, forget, cell, output; a unit of the LSTM at a time."""
    units = len(h)
    bias = w["bias_ih"] + w["bias_hh"]

    def summed(row: int) -> Tensor:
        fed = sum(w["weight_ih"][row, k] * feature for k, feature in enumerate(x))
        return fed + sum(w["weight_hh"][row, k] * said for k, said in enumerate(h)) + bias[row]

    said, kept = [], []
    for unit in range(units):
        enter, forget, new, leave = (summed(part * units + unit) for part in range(4))
        kept.append(s[unit] / (1 + (-forget).exp()) + new.tanh() / (1 + (-enter).exp()))
        said.append(kept[-1].tanh() / (1 + (-leave).exp()))
    return said, kept
