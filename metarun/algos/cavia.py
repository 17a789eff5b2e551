"""Fast context adaptation via meta-learning (CAVIA).

Zintgraf, Shiarlis, Kurin, Hofmann, Whiteson, "Fast Context Adaptation via Meta-Learning", ICML 2019,
https://arxiv.org/abs/1810.03642; code: https://github.com/lmzintgraf/cavia.

The context phi is added, through a learned linear map, to the parameters that the backbone lists as `modulated`:
- To a first layer's bias, b + V phi. This is the paper's layer W [x; phi] + b on input and context together. The
  authors' code draws V as a part of that layer: on sine waves, with 5 context parameters, uniform in ±1/sqrt(6).
- To a norm layer's scale and shift, w + U phi and b + V phi. This is the paper's FiLM layer with linear gamma(phi) and
  beta(phi), whose constant parts are w and b. Here FiLM starts as the identity, with U and V uniform in -1..1. In the
  authors' code gamma starts within 0.1 of 0 and its map within 0.17, a similar ratio. The code pools before FiLM, which
  is a different function if the scale is negative.
- To the shift alone of a norm layer that has no scale.
The code clips the meta-gradient element-wise to [-10, 10]; the setting for this is trainer.clip_value.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import draw_networks, forward, last, own_generator, unroll
from metarun.core.objectives import episode_loss, metrics_by_step
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "cavia", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class CAVIA:
    """Adapt a context vector that modulates a network shared by all tasks (Zintgraf et al. 2019)."""

    context_size: Count
    inner_lr: Positive  # alpha
    inner_steps: Whole
    first_order: bool
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def __post_init__(self) -> None:
        require_place(self.backbone, "algo=cavia", "conv4")

    def init(self) -> Theta:
        """MAML's components, and "context": the maps from the context, [units or channels, context_size] each."""
        theta = draw_networks(self.backbone, self.head)
        with own_generator():
            return {**theta, "context": draw_maps(self.backbone, self.context_size)}

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """Yield phi_0 .. phi_J of phi_0 = 0, phi_{j+1} = phi_j - alpha * grad L(phi_j, theta; support).

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values.
        """

        def loss(phi: Theta) -> Tensor:
            return objectives.loss(self.spec.kind, self.predict(theta, phi, support.x), support.y)

        start = {"context": {"phi": theta["head"]["bias"].new_zeros(self.context_size)}}
        return unroll(loss, start, lr=self.inner_lr, steps=self.inner_steps, first_order=self.first_order)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        weights = modulate(theta["backbone"] | theta["norm"], theta["context"], phi["context"]["phi"])
        return forward(self.head, theta["head"], forward(self.backbone, weights, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss after adaptation of the context: the meta-objective."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline metric after the last inner step, and after each from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)


def require_place(backbone: Backbone, asked: str, other: str) -> None:
    """Raise ConfigError if no parameter of the backbone can be modulated."""
    if not backbone.modulated:
        name = type(backbone).__name__
        raise ConfigError(
            f"{asked} finds no place for a context in the backbone {name}: choose another, for example {other}"
        )


def draw_maps(backbone: Backbone, size: int) -> Params:
    """Draw the maps from a context of this size to what it modulates: [units or channels, size] each."""
    counts = {name: backbone.get_parameter(name).numel() for name in backbone.modulated}
    return {name: torch.empty(count, size).uniform_(-1, 1) for name, count in counts.items()}


def modulate(weights: Params, maps: Params, context: Tensor) -> Params:
    """The weights with what the context [size] adds to some of them."""
    return weights | {name: weights[name] + matrix @ context for name, matrix in maps.items()}
