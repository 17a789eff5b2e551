"""The quadratic probe of FS-Mol: class means and covariances, of which the means take a few steps of Adam.

Formont, Jeannin, Piantanida, Ben Ayed, "A Strong Baseline for Molecular Few-Shot Learning", 2024,
https://arxiv.org/abs/2404.02314. As in the authors' code, for any number of classes: the cross-entropy of the support
is minimised over the means w_k, and M_k follows from them at each step, the inverse of (1 - lambda) S_k + lambda I, S_k
the covariance of the class's support about w_k; its slope by w_k counts. Their limit of the gradient's norm, 1, is left
out. A class of one example has S_k = 0 at its mean.

Intended for features that are there: raw inputs, or a network that another method trained, through `eval.algo`. The
paper trains a classifier of all training tasks. It can also be trained itself, through the steps.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from metarun.config.registry import register
from metarun.config.schema import Norm, Positive, Share, Whole
from metarun.config.traits import Traits
from metarun.core.features import find_directions
from metarun.core.inner import descend_by_adam, draw_networks
from metarun.core.objectives import class_means, episode_loss, episode_metrics, one_hot
from metarun.core.solvers import factorise, solve_lower
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "quadratic_probe", Traits(kinds=("classification",), ragged=True))
@dataclass(frozen=True)
class QuadraticProbe:
    """Fit class means by their Mahalanobis distances to the support, from the class means on (Formont et al. 2024)."""

    temperature: Positive
    shrinkage: Share  # lambda
    steps: Whole
    lr: Positive  # of Adam
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone)

    def logits(self, phi: Params, z: Tensor) -> Tensor:
        """-temperature (z - w_k)^T M_k (z - w_k). [n, D] -> [n, N].

        By Woodbury's identity, with the rows R of the class's support minus w_k and s = (1 - lambda) / (n_k - 1):
        x^T (lambda I + s R^T R)^-1 x = (|x|^2 - s (R x)^T (lambda I + s R R^T)^-1 R x) / lambda.
        """

        def measure(mean: Tensor, members: Tensor) -> Tensor:  # [D], [m] -> [n]
            x, rows = z - mean, members[:, None] * (phi["support"] - mean)
            share = (1 - self.shrinkage) / (members.sum() - 1).clamp(min=1)
            root = factorise(share * rows @ rows.T, self.shrinkage)
            explained = share * solve_lower(root, rows @ x.T).square()  # [m, n]
            return (x.square().sum(-1) - explained.sum(0)) / self.shrinkage

        return -self.temperature * vmap(measure, out_dims=1)(phi["means"], phi["members"].T)

    def adapt(self, theta: Theta, support: Examples) -> Params:
        """support.x: [n, *input] -> the means [N, D], and the support [n, D] with its classes [n, N]."""
        z, y = find_directions(self.backbone, theta, support.x), support.y
        seen = {"support": z, "members": one_hot(y, self.spec.output_size).to(z.dtype)}
        means = F.normalize(class_means(z, y, self.spec.output_size), dim=-1)

        def loss(moved: Params) -> Tensor:
            return F.cross_entropy(self.logits(seen | moved, z), y)

        return seen | descend_by_adam(loss, {"means": means}, self.lr, self.steps)

    def predict(self, theta: Theta, phi: Params, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return self.logits(phi, find_directions(self.backbone, theta, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
