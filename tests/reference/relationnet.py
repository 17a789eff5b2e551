from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.reference.plain import Theta, batch_norm, features

SETTINGS = {"hidden": 3, "norm": "batch"}
BACKBONES = ("conv4_relation", "conv4")  # those with maps


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, hidden: int) -> Tensor:
    """(score - 1)^2 where the class is the query's, else score^2; the mean over all queries and classes."""
    support, query = episode
    side = {"conv4_relation": 2, "conv4": 1}[backbone_name]
    maps = features(backbone_name, theta, support.x).view(len(support.x), 4, side, side)
    queries = features(backbone_name, theta, query.x).view(len(query.x), 4, side, side)
    classes = [maps[support.y == k].sum(0) for k in range(int(support.y.max()) + 1)]
    pairs = torch.stack([torch.cat([c, q]) for q in queries for c in classes])
    wanted = torch.tensor([float(y == k) for y in query.y for k in range(len(classes))], dtype=pairs.dtype)
    scores = relation(theta["relation"], pairs)
    assert theta["relation"]["layers.0.weight"].shape == (hidden, 4)
    return ((scores - wanted) ** 2).mean()


def relation(w: dict[str, Tensor], x: Tensor) -> Tensor:
    for i in (0, 1):
        x = F.conv2d(x, w[f"convs.{i}.weight"], padding=1)
        x = batch_norm(x, w[f"norms.{i}.weight"], w[f"norms.{i}.bias"], eps=1e-5).clamp(min=0)
        x = F.max_pool2d(x, x.shape[-1])  # maps of 2x2 or 1x1 to begin with
    x = (x.flatten(1) @ w["layers.0.weight"].T + w["layers.0.bias"]).clamp(min=0)
    return 1 / (1 + (-(x @ w["layers.1.weight"].T + w["layers.1.bias"])).exp())[:, 0]
