"""Siamese networks.

Koch, Zemel, Salakhutdinov, "Siamese Neural Networks for One-shot Image Recognition", ICML Deep Learning Workshop
2015. There is no official code; the regularisation is the optimiser's `weight_decay`.

The paper draws pairs, as many of one class as of two, from a list made beforehand. Here an episode gives the pairs,
every query with every support image, and the two kinds weigh the same: the expectation over such draws.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Norm
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks
from metarun.core.objectives import episode_metrics, headline, one_hot
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


class Support(NamedTuple):
    """What queries are compared with: z [n, D], the embedded support, and its labels y [n]."""

    z: Tensor
    y: Tensor


@register("algo", "siamese", Traits(kinds=("classification",)))
@dataclass(eq=False)
class Siamese:
    """Learn whether two images are of one class; a query is of the class it is most like (Koch et al. 2015)."""

    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        if self.spec.output_size < 2:
            raise ConfigError("ways is 1: algo=siamese learns from pairs of different classes; use at least 2")
        self.metric = self.backbone.head(1)

    def init(self) -> Theta:
        """The "metric" is the weighted distance: alpha [1, D] and a bias [1]."""
        return {**draw_networks(self.backbone), "metric": copy_weights(self.backbone.head(1))}

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return functional_call(self.backbone, (theta["backbone"], theta["norm"]), (x,))

    def likeness(self, theta: Theta, one: Tensor, other: Tensor) -> Tensor:
        """sum_d alpha_d |h1_d - h2_d| + b, the logit of "same" (section 3.1): [n, D], [m, D] -> [n, m]."""
        distances = (one[:, None] - other).abs()  # [n, m, D]
        return functional_call(self.metric, theta["metric"], (distances,))[:, :, 0]

    def best_match(self, likeness: Tensor, y: Tensor) -> Tensor:
        """Of each class's support the most alike (section 4.3): [n, m], y [m] -> [n, N]."""
        members = one_hot(y, self.spec.output_size)  # [m, N]
        return likeness[:, :, None].masked_fill(~members, -torch.inf).amax(1)

    def adapt(self, theta: Theta, support: Examples) -> Support:
        """support.x: [n, *input], support.y: [n]."""
        return Support(self.embed(theta, support.x), support.y)

    def predict(self, theta: Theta, phi: Support, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits of "same" with each class's best match [n, N]."""
        return self.best_match(self.likeness(theta, self.embed(theta, x), phi.z), phi.y)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Binary cross-entropy over the pairs, half of it over those of one class (section 3.2).

        Support and query pass the network as one batch.
        """
        support, query = episode
        z = self.embed(theta, torch.cat([support.x, query.x]))
        likeness = self.likeness(theta, z[len(support.y) :], z[: len(support.y)])  # [n, m]
        same = (query.y[:, None] == support.y).to(likeness.dtype)
        weight = (same / same.sum() + (1 - same) / (1 - same).sum()) / 2
        loss = F.binary_cross_entropy_with_logits(likeness, same, weight, reduction="sum")
        matches = self.best_match(likeness, support.y)
        return loss, headline(self.spec, matches, query.y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
