from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributions import MultivariateNormal

from tests.reference.plain import Theta, batch_norm, features

SETTINGS = {"kernel": "bncossim", "noise": 0.3, "norm": "running"}


def plain_loss(backbone_name: str, theta: Theta, episode: Any, *, kernel: str, noise: float) -> Tensor:
    """The density of each class's labels, +1 and -1, under PyTorch's own normal distribution; pair by pair."""
    support, query = episode
    y = torch.cat([support.y, query.y])
    z = embed(backbone_name, theta, torch.cat([support.x, query.x]), kernel)
    covariance = torch.stack([torch.stack([compare(theta, kernel, a, b) for b in z]) for a in z])
    covariance = covariance + (theta["process"]["log_noise"].exp() + 1e-4) * torch.eye(len(z), dtype=z.dtype)
    prior = MultivariateNormal(theta["process"]["mean"].expand(len(z)), covariance)
    labels = y.T if y.is_floating_point() else [2.0 * (y == k) - 1 for k in range(int(y.max()) + 1)]
    return -torch.stack([prior.log_prob(column.to(z.dtype)) for column in labels]).mean() / len(z)


def embed(backbone_name: str, theta: Theta, x: Tensor, kernel: str) -> Tensor:
    z = features(backbone_name, theta, x)
    if kernel == "bncossim":
        z = batch_norm(z, theta["output_norm"]["weight"], theta["output_norm"]["bias"], eps=1e-5)
    return z


def compare(theta: Theta, kernel: str, a: Tensor, b: Tensor) -> Tensor:
    """k(a, b) of two vectors."""
    w = theta["kernel"]
    if kernel == "linear":
        shape = a @ b
    elif kernel in ("cossim", "bncossim"):
        shape = F.cosine_similarity(a, b, dim=0)
    elif kernel == "rbf":
        shape = torch.exp(-((a - b) ** 2).sum() / (2 * w["log_length"].exp() ** 2))
    else:
        shares = w["logits"].exp() / w["logits"].exp().sum()
        falls = [torch.exp(-0.5 * (((a - b) * v.exp()) ** 2).sum()) for v in w["log_widths"]]
        waves = [torch.cos(mu @ a - mu @ b) for mu in w["frequencies"]]
        shape = sum(share * fall * wave for share, fall, wave in zip(shares, falls, waves))
    return w["log_scale"].exp() * shape
