"""The linear probe of FS-Mol: directions of classes and biases, from the class means on, by a few steps of Adam.

Formont, Jeannin, Piantanida, Ben Ayed, "A Strong Baseline for Molecular Few-Shot Learning", 2024,
https://arxiv.org/abs/2404.02314. As in the authors' code, for any number of classes: a class is a vector, whose length
does not count, and a bias; the cross-entropy of the support is minimised without a penalty, and few steps keep it from
being overfitted. Their limit of the gradient's norm, 1, is left out.

Intended for features that are there: raw inputs, or a network that another method trained, through `eval.algo`. The
paper trains a classifier of all training tasks. It can also be trained itself, through the steps.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core.features import find_directions
from metarun.core.inner import descend_by_adam, draw_networks
from metarun.core.objectives import class_means, episode_loss, episode_metrics
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "linear_probe", Traits(kinds=("classification",), ragged=True))
@dataclass(frozen=True)
class LinearProbe:
    """Fit a linear classifier of directions, from the class means on (Formont et al. 2024)."""

    temperature: Positive
    steps: Whole
    lr: Positive  # of Adam
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone)

    def logits(self, phi: Params, z: Tensor) -> Tensor:
        """-temperature (|z - w_k / |w_k||^2 + b_k), z of length 1. [n, D] -> [n, N]."""
        cosines = z @ F.normalize(phi["weight"], dim=-1).T
        return self.temperature * (2 * cosines - 2 - phi["bias"])

    def adapt(self, theta: Theta, support: Examples) -> Params:
        """support.x: [n, *input] -> weight [N, D], bias [N]."""
        z, y = find_directions(self.backbone, theta, support.x), support.y
        means = F.normalize(class_means(z, y, self.spec.output_size), dim=-1)
        start = {"weight": means, "bias": means.new_zeros(len(means))}
        return descend_by_adam(lambda phi: F.cross_entropy(self.logits(phi, z), y), start, self.lr, self.steps)

    def predict(self, theta: Theta, phi: Params, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return self.logits(phi, find_directions(self.backbone, theta, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
