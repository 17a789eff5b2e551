"""Meta-SGD: learned initialisation, rates and directions.

Li, Zhou, Chen, Li, "Meta-SGD: Learning to Learn Quickly for Few-Shot Learning", 2017,
https://arxiv.org/abs/1707.09835. There is no official code.

Losses are means over examples; see maml.py on what a sum over ways would mean for the rates.
As in MAML the norm layers' parameters are meta-learned but not adapted, so they have no rates.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import NonNegative, Norm, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import draw_networks, last, named, select, unroll
from metarun.core.learned import Chart, by_rank
from metarun.core.objectives import episode_loss, metrics_by_step
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "metasgd", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class MetaSGD:
    """Learn an initialisation and a rate for each weight, which may turn negative (Li et al. 2017)."""

    lr_range: list[NonNegative]  # alpha at the start is uniform between these two
    inner_steps: Whole
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def __post_init__(self) -> None:
        if len(self.lr_range) != 2 or self.lr_range[0] > self.lr_range[1]:
            raise ConfigError(f"algo.lr_range is {self.lr_range}: it must be two numbers, the lower first")

    def init(self) -> Theta:
        """MAML's components, and "lr": for each weight that is adapted one of its shape, by its full name."""
        theta = draw_networks(self.backbone, self.head)
        adapted = named(select(theta, "backbone", "head"))
        return {**theta, "lr": {name: torch.empty_like(p).uniform_(*self.lr_range) for name, p in adapted.items()}}

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """theta' = theta - alpha o grad L(theta; support), element by element (Algorithm 1): phi_0 .. phi_J.

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values. The paper takes one step;
        further ones have the same rates.
        """

        def loss(phi: Theta) -> Tensor:
            return objectives.loss(self.spec.kind, self.predict(theta, phi, support.x), support.y)

        return unroll(loss, select(theta, "backbone", "head"), lr=theta["lr"], steps=self.inner_steps)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = functional_call(self.backbone, (phi["backbone"], theta["norm"]), (x,))
        return functional_call(self.head, phi["head"], (features,))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss after adaptation, descended in theta and alpha alike (Algorithm 1)."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)

    def explained(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """The rates of each layer's weights, sorted."""
        return {"rates": by_rank(theta["lr"])}
