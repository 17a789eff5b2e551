"""Ridge regression as the learner within a task (R2-D2).

Bertinetto, Henriques, Torr, Vedaldi, "Meta-learning with differentiable closed-form solvers", ICLR 2019,
https://arxiv.org/abs/1805.08136; code: https://github.com/bertinetto/r2d2.

As in the authors' code lambda is per example (there the support's features and labels are divided by sqrt(NK)). As in
the paper lambda is learned; it is learned through its logarithm, so that it stays positive (in the code it is 50). The
code draws a number of shots for each episode. In classification the bias moves all logits equally and has no gradient.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Norm, Positive
from metarun.config.traits import Traits
from metarun.core.inner import draw_networks, forward
from metarun.core.objectives import episode_metrics, judge, one_hot
from metarun.core.solvers import add_ones, ridge
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "r2d2", Traits(kinds=("classification", "regression")))
@dataclass(frozen=True)
class R2D2:
    """Learn features that a ridge regression on the support separates best (Bertinetto et al. 2019)."""

    penalty: Positive  # initial lambda
    scale: Positive  # initial alpha
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        learner = {"log_penalty": math.log(self.penalty), "scale": self.scale, "bias": 0.0}
        return draw_networks(self.backbone) | {"ridge": {name: torch.tensor(p) for name, p in learner.items()}}

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D + 1], with a column of ones."""
        return add_ones(forward(self.backbone, (theta["backbone"], theta["norm"]), x))

    def weights(self, theta: Theta, features: Tensor, y: Tensor) -> Tensor:
        """Lambda(Z), the closed form: features [n, D + 1], y [n] class indices or [n, output] values -> [D + 1, N]."""
        classes = self.spec.kind == "classification"
        targets = one_hot(y, self.spec.output_size).to(features.dtype) if classes else y
        return ridge(features, targets, features.shape[0] * theta["ridge"]["log_penalty"].exp())

    def outputs(self, theta: Theta, phi: Tensor, features: Tensor) -> Tensor:
        """alpha X W + beta, which turns regressed labels into logits."""
        return theta["ridge"]["scale"] * (features @ phi) + theta["ridge"]["bias"]

    def adapt(self, theta: Theta, support: Examples) -> Tensor:
        """W. support.x: [n, *input] -> [D + 1, N]."""
        return self.weights(theta, self.features(theta, support.x), support.y)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, output]."""
        return self.outputs(theta, phi, self.features(theta, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss of the solution. As in the authors' code, the network sees support and query as one batch."""
        support, query = episode
        features = self.features(theta, torch.cat([support.x, query.x]))
        phi = self.weights(theta, features[: len(support.y)], support.y)
        return judge(self.spec, self.outputs(theta, phi, features[len(support.y) :]), query.y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
