"""Adaptive learning of hyperparameters for fast adaptation (ALFA), with MAML's initialisation.

Baik, Choi, Choi, Kim, Lee, "Meta-Learning with Adaptive Hyperparameters", NeurIPS 2020,
https://arxiv.org/abs/2011.00209; code: https://github.com/baiksung/ALFA.

We follow the authors' code where it differs from the paper:
- A layer decays by the factor 1 - beta; the paper prints beta.
- A generated rate is multiplied by a number for each layer and step (for stability, they say). Here it is learned, as
  the paper has it; in the code it keeps its initial value.
- A "layer" is a weight or a bias. Parameters of norm layers are meta-learned but not adapted.
The outer loss is that after the last inner step.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn

from metarun.config.registry import register
from metarun.config.schema import Count, NonNegative, Norm, Positive
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import (
    at_step,
    draw_networks,
    flatten,
    forward,
    gradient_of,
    last,
    layer_means,
    own_generator,
    select,
    stack_steps,
)
from metarun.core.learned import Chart, chart_by_step
from metarun.core.objectives import episode_loss, metrics_by_step
from metarun.core.perceptron import draw_perceptron, perceptron
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "alfa", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class ALFA:
    """MAML with a rate and a decay for each layer, generated at each step from the task (Baik et al. 2020)."""

    inner_lr: Positive  # initial value of the learned factors of the rates
    decay: NonNegative  # initial value of the learned factors of the decays, as a share of inner_lr
    inner_steps: Count
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        """MAML's components; "lr" and "decay", [J] for each layer by full name; "generator", from 2L to 2L numbers."""
        theta = draw_networks(self.backbone, self.head)
        layers = flatten(select(theta, "backbone", "head"))
        lr = {name: p.new_full((self.inner_steps,), self.inner_lr) for name, p in layers.items()}
        decay = {name: self.decay * rate for name, rate in lr.items()}
        size = 2 * len(layers)
        with own_generator():
            generator = draw_perceptron(size, size, size)
        return {**theta, "lr": lr, "decay": decay, "generator": generator}

    def rates(self, theta: Theta, phi: Theta, gradient: Theta, j: int) -> tuple[Params, Params]:
        """alpha and beta of step j, [] for each layer, from tau_j = (mean weights, mean gradients) of the layers."""
        generated = perceptron(theta["generator"], torch.cat([layer_means(phi), layer_means(gradient)]))
        lr, decay = at_step(theta["lr"], j), at_step(theta["decay"], j)
        alpha = {name: factor * number for (name, factor), number in zip(lr.items(), generated)}
        beta = {name: factor * number for (name, factor), number in zip(decay.items(), generated[len(lr) :])}
        return alpha, beta

    def gradient(self, theta: Theta, phi: Theta, support: Examples) -> Theta:
        """grad L(phi; support)."""
        return gradient_of(
            lambda phi: objectives.loss(self.spec.kind, self.predict(theta, phi, support.x), support.y), phi
        )

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """Yield phi_0 .. phi_J of phi_{j+1} = (1 - beta_j) phi_j - alpha_j grad L(phi_j; support).

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values.
        """
        phi = select(theta, "backbone", "head")
        yield phi
        for j in range(self.inner_steps):
            gradient = self.gradient(theta, phi, support)
            alpha, beta = self.rates(theta, phi, gradient, j)
            phi = {
                c: {n: (1 - beta[f"{c}.{n}"]) * p - alpha[f"{c}.{n}"] * gradient[c][n] for n, p in params.items()}
                for c, params in phi.items()
            }
            yield phi

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = forward(self.backbone, (phi["backbone"], theta["norm"]), x)
        return forward(self.head, phi["head"], features)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss after adaptation. It trains the initialisation and what generates the rates."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline metric after the last inner step, and after each from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)

    def explain(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """Chart the rate and the decay of each layer and step on this task."""
        states = enumerate(islice(self.trajectory(theta, episode.support), self.inner_steps))
        rates = [self.rates(theta, phi, self.gradient(theta, phi, episode.support), j) for j, phi in states]
        alphas, betas = zip(*rates)
        return {"rates": chart_by_step(stack_steps(alphas)), "decays": chart_by_step(stack_steps(betas))}
