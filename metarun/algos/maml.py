"""Model-agnostic meta-learning (MAML) and its first-order form (FOMAML).

Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017,
https://arxiv.org/abs/1703.03400.

Losses are means over examples. The authors' code sums the classification loss over the N classes, so their
alpha is N times ours for the same step: 0.4 printed for Omniglot 5-way is inner_lr 2.0 here.
As in their code the norm layers' parameters are meta-learned but not adapted.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.registry import register
from metarun.config.schema import Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import draw_networks, last, select, unroll
from metarun.core.objectives import episode_loss, metrics_by_step
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "maml", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class MAML:
    """Learn an initialisation from which a few gradient steps solve a new task (Finn et al. 2017)."""

    inner_lr: Positive  # alpha
    inner_steps: Whole
    first_order: bool  # drop the second derivatives (section 5.2)
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone, self.head)

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """theta' = theta - alpha * grad L(theta; support), repeated (Algorithm 1, line 6): phi_0 .. phi_J.

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values. Each state holds the
        adapted components, with the names and shapes of theta's.
        """

        def loss(phi: Theta) -> Tensor:
            return objectives.loss(self.spec.kind, self.predict(theta, phi, support.x), support.y)

        adapted = select(theta, "backbone", "head")
        return unroll(loss, adapted, lr=self.inner_lr, steps=self.inner_steps, first_order=self.first_order)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = functional_call(self.backbone, (phi["backbone"], theta["norm"]), (x,))
        return functional_call(self.head, phi["head"], (features,))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss after adaptation: the term summed in Eq. 1."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)
