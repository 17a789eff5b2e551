from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss

SETTINGS = {"norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any) -> Tensor:
    """Support and query pass the network as one batch; -||z - c_k||^2 is the logit of class k."""
    support, query = episode
    z = features(backbone_name, theta, torch.cat([support.x, query.x]))
    z_support, z_query = z[: len(support.x)], z[len(support.x) :]
    classes = range(int(support.y.max()) + 1)
    prototypes = [z_support[support.y == k].mean(0) for k in classes]
    logits = [torch.stack([-((z_i - c) ** 2).sum() for c in prototypes]) for z_i in z_query]
    return loss(torch.stack(logits), query.y)
