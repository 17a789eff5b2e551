"""LaplacianShot: nearest class mean, with labels on which neighbouring queries agree.

Ziko, Dolz, Granger, Ben Ayed, "Laplacian Regularized Few-Shot Learning", ICML 2020, https://arxiv.org/abs/2006.15486.
Features are centred and scaled to length 1 as in SimpleShot.

As in the authors' code: class means are rectified by the queries, whose weights are softmax(10 cos); W has a row for
each query, with ones at its nearest others, and is not made symmetric. Here the number of bound updates is fixed, and
an example of the support counts for its own class in the rectified means, there for the class whose mean it is nearest
to.

It is transductive: queries are labelled together. With `transductive: false` it is SimpleShot.

Intended for features that are there: raw inputs, or a network that another method trained, through `eval.algo`. The
paper trains a classifier of all training classes. It can also be trained itself.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count, NonNegative, Norm
from metarun.config.traits import Traits
from metarun.core.features import find_centre
from metarun.core.inner import draw_networks, forward
from metarun.core.objectives import class_means, episode_loss, episode_metrics, one_hot
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "laplacianshot", Traits(kinds=("classification",), sees_queries=True))
@dataclass(frozen=True)
class LaplacianShot:
    """Label queries by class means and by how their nearest neighbours are labelled (Ziko et al. 2020)."""

    smoothness: NonNegative  # lambda
    neighbours: Count  # k
    updates: Count
    rectified: bool
    transductive: bool
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone)

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return forward(self.backbone, (theta["backbone"], theta["norm"]), x)

    def adapt(self, theta: Theta, support: Examples, queries: Tensor | None = None) -> Params:
        """The centre [D], the prototypes m [N, D] and, where queries [q, *input] are seen, these and their labels Y.

        All bound updates but the last are taken (Algorithm 1).
        """
        z = self.features(theta, support.x)
        centre = find_centre(self.backbone, z, support.y)
        z = F.normalize(z - centre, dim=-1)
        phi = {"centre": centre, "prototypes": class_means(z, support.y, self.spec.output_size)}
        if queries is None:
            return phi
        seen = F.normalize(self.features(theta, queries) - centre, dim=-1)
        if self.rectified:
            phi["prototypes"] = self.rectify(phi["prototypes"], z, support.y, seen)
        phi |= {"queries": seen, "labels": (-self.distances(phi, seen)).softmax(-1)}
        for _ in range(self.updates - 1):
            phi["labels"] = self.update(phi, seen).softmax(-1)
        return phi

    def rectify(self, prototypes: Tensor, z: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Average each class's support and the queries that are nearest to it, by softmax(10 cos) as weight.

        Queries are moved first, so that their mean is that of the support. [N, D], [n, D], [n], [q, D] -> [N, D].
        """
        moved = queries + z.mean(0) - queries.mean(0)
        cosines = F.normalize(torch.cat([z, moved]), dim=-1) @ F.normalize(prototypes, dim=-1).T  # [n + q, N]
        nearest = torch.cat([y, cosines[len(z) :].argmax(-1)])
        members = one_hot(nearest, len(prototypes)).to(z.dtype)
        weights = members * (10 * cosines).softmax(-1) / members.sum(0)
        return weights.T @ torch.cat([z, moved])

    def distances(self, phi: Params, z: Tensor) -> Tensor:
        """a, the squared distances to the prototypes. [n, D] -> [n, N]."""
        return (z[:, None] - phi["prototypes"]).square().sum(-1)

    def update(self, phi: Params, z: Tensor) -> Tensor:
        """-a + lambda W Y, whose softmax is a bound update. z: [n, D] -> [n, N]."""
        return -self.distances(phi, z) + self.smoothness * self.affinity(z, phi["queries"]) @ phi["labels"]

    def affinity(self, z: Tensor, queries: Tensor) -> Tensor:
        """W: 1 at the nearest queries of each z, but not at itself, at distance 0. [n, D], [q, D] -> [n, q]."""
        z, queries, count = z.detach(), queries.detach(), len(queries)
        apart = torch.cdist(z, queries, compute_mode="donot_use_mm_for_euclid_dist")  # 0 is exact
        itself = one_hot(apart.argmin(-1), count) & (apart == 0)
        nearest = torch.where(itself, torch.inf, apart).topk(min(self.neighbours, count - 1), largest=False).indices
        return one_hot(nearest, count).any(1).to(z.dtype)

    def predict(self, theta: Theta, phi: Params, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], after a last bound update if queries were seen."""
        z = F.normalize(self.features(theta, x) - phi["centre"], dim=-1)
        return self.update(phi, z) if "labels" in phi else -self.distances(phi, z)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
