from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss

SETTINGS = {"penalty": 0.7, "scale": 3.0, "norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, penalty: float, scale: float) -> Tensor:
    """The minimum of 1/n |X W - Y|^2 + lambda |W|^2 by least squares on the augmented system [X; sqrt(n lambda) I]."""
    support, query = episode
    z = features(backbone_name, theta, torch.cat([support.x, query.x]))
    z = torch.cat([z, torch.ones(len(z), 1, dtype=z.dtype)], dim=1)
    x, x_query = z[: len(support.x)], z[len(support.x) :]
    if support.y.is_floating_point():
        y = support.y
    else:
        y = torch.stack([(support.y == k).to(x.dtype) for k in range(int(support.y.max()) + 1)], dim=1)
    learner = theta["ridge"]
    root = (len(x) * learner["log_penalty"].exp()).sqrt()
    rows = torch.cat([x, root * torch.eye(x.shape[1], dtype=x.dtype)])
    right = torch.cat([y, torch.zeros(x.shape[1], y.shape[1], dtype=x.dtype)])
    w = torch.linalg.lstsq(rows, right).solution
    return loss(learner["scale"] * (x_query @ w) + learner["bias"], query.y)
