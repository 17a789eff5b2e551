"""Prototypical networks.

Snell, Swersky, Zemel, "Prototypical Networks for Few-shot Learning", NeurIPS 2017,
https://arxiv.org/abs/1703.05175.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Norm
from metarun.config.traits import Traits
from metarun.core.inner import draw_networks, forward
from metarun.core.objectives import class_means, episode_metrics, judge
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "protonet", Traits(kinds=("classification",), ragged=True))
@dataclass(frozen=True)
class ProtoNet:
    """Learn an embedding in which each class clusters around its mean (Snell et al. 2017)."""

    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone)

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return forward(self.backbone, (theta["backbone"], theta["norm"]), x)

    def prototypes(self, z: Tensor, y: Tensor) -> Tensor:
        """c_k, the mean embedding of class k (Eq. 1). z: [n, D], y: [n] -> [N, D]."""
        return class_means(z, y, self.spec.output_size)

    def logits(self, prototypes: Tensor, z: Tensor) -> Tensor:
        """-||z - c_k||^2 (Eq. 2). [N, D], [n, D] -> [n, N]."""
        return -(z[:, None] - prototypes).square().sum(-1)

    def adapt(self, theta: Theta, support: Examples) -> Tensor:
        """support.x: [n, *input] -> prototypes [N, D]."""
        return self.prototypes(self.embed(theta, support.x), support.y)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return self.logits(phi, self.embed(theta, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Algorithm 1. As in the authors' code, the network sees support and query as one batch."""
        support, query = episode
        z = self.embed(theta, torch.cat([support.x, query.x]))
        prototypes = self.prototypes(z[: len(support.y)], support.y)
        return judge(self.spec, self.logits(prototypes, z[len(support.y) :]), query.y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
