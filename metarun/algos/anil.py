"""Almost no inner loop (ANIL).

Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML",
ICLR 2020, https://arxiv.org/abs/1909.09157. There is no official code.

Losses are means over examples; see maml.py on what that means for alpha.
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


@register("algo", "anil", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class ANIL:
    """MAML whose inner loop changes the last layer only (Raghu et al. 2020)."""

    inner_lr: Positive  # alpha
    inner_steps: Whole
    first_order: bool
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone, self.head)

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return functional_call(self.backbone, (theta["backbone"], theta["norm"]), (x,))

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """MAML's inner loop on the head (section 4.1); the body is not adapted, so features are computed once.

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values. Yields phi_0 .. phi_J.
        """
        features = self.features(theta, support.x)

        def loss(phi: Theta) -> Tensor:
            logits = functional_call(self.head, phi["head"], (features,))
            return objectives.loss(self.spec.kind, logits, support.y)

        head = select(theta, "head")
        return unroll(loss, head, lr=self.inner_lr, steps=self.inner_steps, first_order=self.first_order)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        return functional_call(self.head, phi["head"], (self.features(theta, x),))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss after adaptation of the head."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)
