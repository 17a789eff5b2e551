from typing import Any

import torch
from torch import Tensor

from tests.reference.matchingnet import lstm
from tests.reference.plain import Theta, features, loss

SETTINGS = {"hidden": 5, "labels": "one_hot", "norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, hidden: int, labels: str) -> Tensor:
    """One example after another, with the label of the one before; every step has to say its own."""
    assert labels == "one_hot"
    x, y = (torch.cat(fields) for fields in zip(*episode))
    z = features(backbone_name, theta, x)
    h = c = z.new_zeros(hidden)
    logits, label = [], z.new_zeros(int(y.max()) + 1)
    for z_t, y_t in zip(z, y):
        h, c = lstm(theta["controller"], "", torch.cat([z_t, label]), h, c)
        logits.append(theta["readout"]["weight"] @ h + theta["readout"]["bias"])
        label = torch.zeros_like(label)
        label[y_t] = 1
    return loss(torch.stack(logits), y)
