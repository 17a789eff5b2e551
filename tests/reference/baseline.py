from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss

SETTINGS = {
    "batch_size": 6,
    "cosine_scale": None,
    "head_lr": 0.05,
    "head_start": "random",
    "head_passes": 5,
    "head_batch": 4,
    "momentum": 0.9,
    "dampening": 0.9,
    "weight_decay": 1e-3,
    "norm": "running",
}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, cosine_scale: float | None, **_: Any) -> Tensor:
    """The support, and what says how a layer is fitted to it, play no part in training."""
    z = features(backbone_name, theta, episode.query.x)
    return loss(logits(theta["classifier"], z, cosine_scale), episode.query.y)


def logits(layer: dict[str, Tensor], z: Tensor, cosine_scale: float | None) -> Tensor:
    """A linear layer, or its weight vectors' cosines with each z times the scale."""
    if cosine_scale is None:
        return z @ layer["weight"].T + layer["bias"]
    rows = [[(z_i @ w) / ((z_i @ z_i) * (w @ w)).sqrt() for w in layer["weight"]] for z_i in z]
    return cosine_scale * torch.stack([torch.stack(row) for row in rows])
