"""Logistic regression as the learner within a task (LR-D2).

Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
https://arxiv.org/abs/1805.08136; code: https://github.com/bertinetto/r2d2.

One class against all others for each class, whose scores are the logits. The paper has one classifier for two classes:
here their two scores are opposite, which doubles that classifier's logit. lambda is learned through its logarithm
(the code keeps it where it starts).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive
from metarun.config.traits import Traits
from metarun.core.inner import draw_networks
from metarun.core.objectives import episode_metrics, judged, one_hot
from metarun.core.solvers import logistic_regression, with_ones
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "lrd2", Traits(kinds=("classification",)))
@dataclass(frozen=True)
class LRD2:
    """Learn features that a few Newton steps of logistic regression separate best (Bertinetto et al. 2019)."""

    penalty: Positive  # lambda at the start
    iterations: Count
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone) | {"logistic": {"log_penalty": torch.tensor(math.log(self.penalty))}}

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D + 1], with a column of ones."""
        return with_ones(functional_call(self.backbone, (theta["backbone"], theta["norm"]), (x,)))

    def weights(self, theta: Theta, features: Tensor, y: Tensor) -> Tensor:
        """A classifier of each class against the others: features [n, D + 1], y [n] -> [D + 1, N]."""
        members = one_hot(y, self.spec.output_size).to(features.dtype)  # [n, N]
        return logistic_regression(features, members, theta["logistic"]["log_penalty"].exp(), self.iterations)

    def adapt(self, theta: Theta, support: Examples) -> Tensor:
        """support.x: [n, *input] -> [D + 1, N]."""
        return self.weights(theta, self.features(theta, support.x), support.y)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return self.features(theta, x) @ phi

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss of the solution. Support and query pass through the network as one batch, as in the code."""
        support, query = episode
        features = self.features(theta, torch.cat([support.x, query.x]))
        phi = self.weights(theta, features[: len(support.y)], support.y)
        return judged(self.spec, features[len(support.y) :] @ phi, query.y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
