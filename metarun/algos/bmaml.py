"""Bayesian MAML (BMAML): particles that Stein variational gradient descent adapts to a task, with the chaser loss.

Yoon, Kim, Dia, Kim, Bengio, Ahn, "Bayesian Model-Agnostic Meta-Learning", NeurIPS 2018,
https://arxiv.org/abs/1806.03836; the steps are those of Liu & Wang 2016, https://arxiv.org/abs/1608.04471.

A particle is the weights of a network and, in regression, the logarithm of the precision of its normal noise. Within a
task their prior is flat: the learned particles, where adaptation starts, are what tasks have in common. The authors'
code has a normal prior of the weights as well. As there, the kernel's bandwidth counts as a constant.

Norm layers are shared by the particles, and are not adapted.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor, nn
from torch.func import vmap

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive, Range, Whole
from metarun.config.traits import Traits
from metarun.core.inner import draw_networks, flatten, forward, gradient_of, last, own_generator, select, stack_steps
from metarun.core.objectives import log_normal_density, measure, measure_density, metrics_by_step, one_hot
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "bmaml", Traits(kinds=("classification", "regression"), exact=False))
@dataclass(frozen=True)
class BMAML:
    """Learn particles from which a few Stein steps give a task's posterior (Yoon et al. 2018)."""

    particles: Annotated[int, Range(2)]  # M
    inner_lr: Positive  # alpha, for the log likelihood of the sum over examples
    inner_steps: Whole  # n
    leader_steps: Count  # s
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        """The "particles": all their parameters by full name, [M, ...] each; the first has the weights of MAML."""
        drawn = [draw_networks(self.backbone, self.head)]
        with own_generator():
            drawn += [draw_networks(self.backbone, self.head) for _ in range(self.particles - 1)]
        particles = stack_steps([flatten(select(networks, "backbone", "head")) for networks in drawn])
        if self.spec.kind == "regression":
            particles["log_precision"] = torch.zeros(self.particles)
        return {"particles": particles, "norm": drawn[0]["norm"]}

    def outputs(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [M, n, outputs], of each particle."""

        def run(weights: Params) -> Tensor:
            z = forward(self.backbone, (part(weights, "backbone"), theta["norm"]), x)
            return forward(self.head, part(weights, "head"), z)

        return vmap(run)(phi["particles"])

    def log_likelihood(self, theta: Theta, phi: Theta, examples: Examples) -> Tensor:
        """log p(y | x) of the examples together: [M]."""
        outputs = self.outputs(theta, phi, examples.x)
        if self.spec.kind == "classification":
            right = one_hot(examples.y, self.spec.output_size)
            return (outputs.log_softmax(-1) * right).sum((1, 2))
        return log_normal_density(outputs, self.variances(phi), examples.y).sum((1, 2))

    def variances(self, phi: Theta) -> Tensor:
        """Of the particles' noise: [M, 1, 1]."""
        return (-phi["particles"]["log_precision"]).exp()[:, None, None]

    def steps(self, theta: Theta, phi: Theta, examples: Examples, count: int) -> Iterator[Theta]:
        """Yield phi, then the particles after each of `count` Stein steps (Algorithm 1)."""
        yield phi
        for _ in range(count):
            gradient = gradient_of(lambda phi: self.log_likelihood(theta, phi, examples).sum(), phi)
            directions = stein_directions(phi["particles"], gradient["particles"])
            phi = {"particles": {name: p + self.inner_lr * directions[name] for name, p in phi["particles"].items()}}
            yield phi

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """Yield phi_0 .. phi_n. support.x: [n, *input], support.y: [n] class indices or [n, *output] values."""
        return self.steps(theta, select(theta, "particles"), support, self.inner_steps)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> log of the mean probability [n, N], or mean of the values [n, *output], over particles."""
        outputs = self.outputs(theta, phi, x)
        if self.spec.kind == "regression":
            return outputs.mean(0)
        return outputs.log_softmax(-1).logsumexp(0) - math.log(self.particles)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """The chaser loss (Eq. 9): 1/2 |chaser - leader|^2, with the leader fixed, which goes on from the chaser with
        the queries too.
        """
        chaser = self.adapt(theta, episode.support)
        together = Examples(*(torch.cat(parts) for parts in zip(*episode)))
        with torch.no_grad():
            leader = last(self.steps(theta, chaser, together, self.leader_steps))["particles"]
        distances = [(p - leader[name]).square().sum() for name, p in chaser["particles"].items()]
        return torch.stack(distances).sum() / 2, measure(
            self.spec, self.predict(theta, chaser, episode.query.x), episode.query.y
        )

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline metric after the last inner step, and after each from 0 on; in regression how good the predicted
        distribution is.
        """
        states = list(self.trajectory(theta, episode.support))
        metrics = metrics_by_step(self, self.spec, theta, episode, states)
        if self.spec.kind == "classification":
            return metrics
        outputs = self.outputs(theta, states[-1], episode.query.x)
        return metrics | measure_density(outputs, self.variances(states[-1]), episode.query.y)


def part(weights: Params, component: str) -> Params:
    """The parameters of a component among full names."""
    start = f"{component}."
    return {name.removeprefix(start): p for name, p in weights.items() if name.startswith(start)}


def stein_directions(particles: Params, gradient: Params) -> Params:
    """phi(x_i) = 1/M sum_j k(x_j, x_i) grad log p(x_j) + grad_{x_j} k(x_j, x_i), from these gradients: [M, ...] each.

    k is exp(-|a - b|^2 / h), with h the median of |a - b|^2 over pairs, by log M (Liu & Wang 2016, section 5).
    """
    count = len(next(iter(particles.values())))
    vectors = [p.reshape(count, -1) for p in particles.values()]
    squares = torch.stack([(v[:, None] - v).square().sum(-1) for v in vectors]).sum(0)  # [M, M]
    i, j = torch.triu_indices(count, count, 1, device=squares.device)
    h = squares[i, j].median().detach() / math.log(count)
    kernel = (-squares / h).exp()

    def direct(p: Tensor, g: Tensor) -> Tensor:
        attraction = torch.tensordot(kernel, g, 1)
        repulsion = torch.einsum("ij,i...->i...", kernel, p) - torch.tensordot(kernel, p, 1)
        direction: Tensor = (attraction + 2 / h * repulsion) / count
        return direction

    return {name: direct(p, gradient[name]) for name, p in particles.items()}
