from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features

SETTINGS = {"norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any) -> Tensor:
    """-log p(same) over pairs of one class, -log(1 - p(same)) over pairs of two: the mean of the two means."""
    support, query = episode
    z = features(backbone_name, theta, torch.cat([support.x, query.x]))
    same: list[Tensor] = []
    different: list[Tensor] = []
    for z_i, y_i in zip(z[len(support.x) :], query.y):
        for z_j, y_j in zip(z[: len(support.x)], support.y):
            p = 1 / (1 + (-((z_i - z_j).abs() * theta["metric"]["weight"]).sum() - theta["metric"]["bias"]).exp())
            (same if y_i == y_j else different).append(-(p if y_i == y_j else 1 - p).log())
    return (torch.stack(same).mean() + torch.stack(different).mean()) / 2
