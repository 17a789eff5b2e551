"""alpha-TIM: class weights that also maximise the mutual information between queries and their labels.

Veilleux, Boudiaf, Piantanida, Ben Ayed, "Realistic Evaluation of Transductive Few-Shot Learning", NeurIPS 2021,
https://arxiv.org/abs/2204.11181, section 4; TIM is Boudiaf et al. 2020, https://arxiv.org/abs/2008.11297.

As in the authors' code and settings, the cross-entropy is Shannon's, the entropies of queries are alpha-entropies (of
Tsallis), features have length 1 without a centre, and the class weights are moved by Adam.

It is transductive. With `transductive: false` only the cross-entropy of the support is minimised.

Intended for features that are there: raw inputs, or a network that another method trained, through `eval.algo`. The
paper trains a classifier of all training classes. It can also be trained itself, through few steps.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive
from metarun.config.traits import Traits
from metarun.core.features import find_directions
from metarun.core.inner import descend_by_adam, draw_networks
from metarun.core.objectives import class_means, episode_loss, episode_metrics
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "alpha_tim", Traits(kinds=("classification",), sees_queries=True))
@dataclass(frozen=True)
class AlphaTIM:
    """Fit class weights to the support, and to certain but varied labels of the queries (Veilleux et al. 2021)."""

    alpha: Positive
    temperature: Positive  # tau
    steps: Count
    lr: Positive  # of Adam
    transductive: bool
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone)

    def logits(self, weights: Tensor, z: Tensor) -> Tensor:
        """-tau / 2 |z - w_k|^2. [N, D], [n, D] -> [n, N]."""
        halves = (weights.square().sum(-1) + z.square().sum(-1, keepdim=True)) / 2
        return self.temperature * (z @ weights.T - halves)

    def entropy(self, p: Tensor) -> Tensor:
        """H_alpha(p) = (1 - sum_k p_k^alpha) / (alpha - 1), Shannon's at alpha = 1. [..., N] -> [...]."""
        if self.alpha == 1:
            return -(p * p.log()).sum(-1)
        return (1 - (p**self.alpha).sum(-1)) / (self.alpha - 1)

    def adapt(self, theta: Theta, support: Examples, queries: Tensor | None = None) -> Tensor:
        """Minimise CE(support) - H(mean of p) + mean of H(p), p the queries' labels, from the class means: [N, D]."""
        z, y = find_directions(self.backbone, theta, support.x), support.y
        seen = None if queries is None else find_directions(self.backbone, theta, queries)

        def loss(weights: Tensor) -> Tensor:
            of_support = F.cross_entropy(self.logits(weights, z), y)
            if seen is None:
                return of_support
            p = self.logits(weights, seen).softmax(-1)
            return of_support - self.entropy(p.mean(0)) + self.entropy(p).mean()

        start = {"weights": class_means(z, y, self.spec.output_size)}
        return descend_by_adam(lambda phi: loss(phi["weights"]), start, self.lr, self.steps)["weights"]

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return self.logits(phi, find_directions(self.backbone, theta, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
