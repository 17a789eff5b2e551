from typing import Any

import torch
from torch import Tensor

from tests.reference.plain import Theta, features, loss
from tests.reference.simpleshot import unit

BACKBONES = ("conv4", "conv4_strided", "mlp", "ngram", "resnet12")  # koch's features are so alike that digits are lost
SETTINGS = {
    "smoothness": 0.4,
    "neighbours": 2,
    "updates": 3,
    "rectified": True,
    "transductive": True,
    "norm": "running",
}


def plain_loss(
    backbone_name: str,
    theta: Theta,
    episode: Any,
    *,
    smoothness: float,
    neighbours: int,
    updates: int,
    rectified: bool,
    transductive: bool,
) -> Tensor:
    """Query by query and class by class; each update is of all labels at once."""
    support, query = episode
    z_support, z_query = features(backbone_name, theta, support.x), features(backbone_name, theta, query.x)
    centre = z_support.mean(0)
    z_support = torch.stack([unit(z - centre) for z in z_support])
    z_query = torch.stack([unit(z - centre) for z in z_query])
    classes = range(int(support.y.max()) + 1)
    prototypes = [z_support[support.y == k].mean(0) for k in classes]
    if rectified and transductive:
        prototypes = rectify(prototypes, z_support, support.y, z_query)
    unary = torch.stack([torch.stack([((z - m) ** 2).sum() for m in prototypes]) for z in z_query])
    if not transductive:
        return loss(-unary, query.y)
    labels = (-unary).exp() / (-unary).exp().sum(1, keepdim=True)
    logits = -unary
    for _ in range(updates):
        rows = []
        for i, z in enumerate(z_query):
            others = [j for j in range(len(z_query)) if j != i]
            nearest = sorted(others, key=lambda j: float((z - z_query[j]).norm().detach()))[:neighbours]
            rows.append(-unary[i] + smoothness * labels[nearest].sum(0))
        logits = torch.stack(rows)
        labels = logits.exp() / logits.exp().sum(1, keepdim=True)
    return loss(logits, query.y)


def rectify(prototypes: list[Tensor], z_support: Tensor, y: Tensor, z_query: Tensor) -> list[Tensor]:
    """The mean of w z over the examples of each class, with w the class's share in softmax(10 cos)."""
    shift = z_support.mean(0) - z_query.mean(0)
    terms: list[list[Tensor]] = [[] for _ in prototypes]
    for z, label in [*zip(z_support, y), *((z + shift, None) for z in z_query)]:
        cosines = torch.stack([unit(z) @ unit(m) for m in prototypes])
        k = int(cosines.argmax() if label is None else label)
        terms[k].append((10 * cosines).softmax(0)[k] * z)
    return [torch.stack(own).mean(0) for own in terms]
