"""Body only update in the inner loop (BOIL).

Oh, Yoo, Kim, Yun, "BOIL: Towards Representation Change for Few-shot Learning", ICLR 2021,
https://arxiv.org/abs/2008.08882.

As in the authors' code the norm layers' parameters belong to the body, and are adapted with it.
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


@register("algo", "boil", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class BOIL:
    """MAML whose inner loop changes all but the last layer (Oh et al. 2021)."""

    inner_lr: Positive  # alpha_b, of the body; the head's alpha_h is 0
    inner_steps: Whole
    first_order: bool
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone, self.head)

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """MAML's inner loop with rate 0 for the head: phi_0 .. phi_J, each of the components "backbone" and "norm".

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values.
        """

        def loss(phi: Theta) -> Tensor:
            return objectives.loss(self.spec.kind, self.predict(theta, phi, support.x), support.y)

        body = select(theta, "backbone", "norm")
        return unroll(loss, body, lr=self.inner_lr, steps=self.inner_steps, first_order=self.first_order)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = functional_call(self.backbone, (phi["backbone"], phi["norm"]), (x,))
        return functional_call(self.head, theta["head"], (features,))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss after adaptation of the body."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)
