"""Adaptive learning of hyperparameters for fast adaptation (ALFA), with MAML's initialisation.

Baik, Choi, Choi, Kim, Lee, "Meta-Learning with Adaptive Hyperparameters", NeurIPS 2020,
https://arxiv.org/abs/2011.00209; code: https://github.com/baiksung/ALFA.

As in the authors' code the decay of a layer is 1 - beta, where the paper has beta itself; what is generated for a layer
is multiplied by a number that is learned for each layer and step (for stability, they say); a "layer" is a weight or a
bias, and norm layers' parameters are meta-learned but not adapted. Outer loss is that after the last step alone.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.registry import register
from metarun.config.schema import Count, NonNegative, Norm, Positive
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import (
    at_step,
    draw_networks,
    gradient_of,
    last,
    layer_means,
    named,
    own_generator,
    select,
    stacked,
)
from metarun.core.learned import Chart, by_step
from metarun.core.objectives import episode_loss, metrics_by_step
from metarun.core.perceptron import draw_perceptron, perceptron
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "alfa", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class ALFA:
    """MAML with a rate and a decay for each layer, generated at each step from the task (Baik et al. 2020)."""

    inner_lr: Positive  # the learned factors of the rates at the start
    decay: NonNegative  # that of the decays, as a part of inner_lr
    inner_steps: Count
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        """MAML's components; "lr" and "decay": [J] for each layer, by full name; "generator": from 2L numbers to 2L."""
        theta = draw_networks(self.backbone, self.head)
        layers = named(select(theta, "backbone", "head"))
        lr = {name: p.new_full((self.inner_steps,), self.inner_lr) for name, p in layers.items()}
        decay = {name: self.decay * rate for name, rate in lr.items()}
        size = 2 * len(layers)
        with own_generator():
            generator = draw_perceptron(size, size, size)
        return {**theta, "lr": lr, "decay": decay, "generator": generator}

    def rates(self, theta: Theta, phi: Theta, gradient: Theta, j: int) -> tuple[Params, Params]:
        """alpha and beta of step j, [] for each layer, from tau_j: the layers' mean weights, then mean gradients."""
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
        """phi_{j+1} = (1 - beta_j) phi_j - alpha_j grad L(phi_j; support): yields phi_0 .. phi_J.

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
        features = functional_call(self.backbone, (phi["backbone"], theta["norm"]), (x,))
        return functional_call(self.head, phi["head"], (features,))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss after adaptation, descended in the initialisation and all that makes the rates."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)

    def explained(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """Of each layer and step the rate and the decay that the task is given."""
        states = enumerate(islice(self.trajectory(theta, episode.support), self.inner_steps))
        given = [self.rates(theta, phi, self.gradient(theta, phi, episode.support), j) for j, phi in states]
        alphas, betas = zip(*given)
        return {"rates": by_step(stacked(alphas)), "decays": by_step(stacked(betas))}
