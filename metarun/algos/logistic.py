"""Logistic regression on features of length 1.

Tian, Wang, Krishnan, Tenenbaum, Isola, "Rethinking Few-Shot Image Classification: A Good Embedding Is All You Need?",
ECCV 2020, https://arxiv.org/abs/2003.11539, section 3: multinomial, with an intercept that is not penalised. The
authors use scikit-learn's with its own settings, penalty 1; the minimum is the same.

Intended for features that are there: raw inputs, or a network that another method trained, through `eval.algo`. The
paper trains a classifier of all training classes. It can also be trained itself, through the iterations.
"""

from dataclasses import dataclass

from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive
from metarun.config.traits import Traits
from metarun.core.features import find_directions
from metarun.core.inner import draw_networks
from metarun.core.objectives import episode_loss, episode_metrics, one_hot
from metarun.core.solvers import multinomial_regression
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "logistic", Traits(kinds=("classification",), ragged=True))
@dataclass(frozen=True)
class Logistic:
    """Fit a logistic regression to the support's features of length 1 (Tian et al. 2020)."""

    penalty: Positive
    iterations: Count
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone)

    def adapt(self, theta: Theta, support: Examples) -> Params:
        """support.x: [n, *input] -> weight [D, N], bias [N]."""
        z = find_directions(self.backbone, theta, support.x)
        members = one_hot(support.y, self.spec.output_size).to(z.dtype)
        weight, bias = multinomial_regression(z, members, self.penalty, self.iterations)
        return {"weight": weight, "bias": bias}

    def predict(self, theta: Theta, phi: Params, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return find_directions(self.backbone, theta, x) @ phi["weight"] + phi["bias"]

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
