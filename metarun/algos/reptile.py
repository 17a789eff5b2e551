"""Reptile: move the initialisation towards the weights that training on each task leads to.

Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018, https://arxiv.org/abs/1803.02999.
The outer step is the optimiser `sgd` without momentum, whose rate is the paper's epsilon, with the schedule `linear`.

As in the authors' code, the inner Adam keeps its second moments and step count from task to task and into meta-test,
while the weights are reset. Here they are components of theta. With trainer.tasks_per_step=1 (Algorithm 1) a task
starts from the moments that the task before left, as there. With T tasks per step (the batched version) the authors'
tasks still run one after another. Ours all start from the same moments, and the mean of their final moments is passed
on, so an outer step ages the moments by `inner_steps` steps instead of T times as many.

Further deviations. The authors shuffle a task's examples, again after each pass. Here the order is fixed (the choice of
a task's examples is random already) and alternates between classes, so minibatches are as balanced as their size
allows. The inner loss is a mean, theirs a sum over the minibatch: for Adam this matters only relative to eps. No graph
is built, so memory does not grow with the number of inner steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metarun.config.registry import register, traits_of
from metarun.config.schema import Count, Fraction, Norm, Positive
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import draw_networks, flatten, forward, gradient_of, last, select, slope
from metarun.core.objectives import judge, metrics_by_step
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "reptile", Traits(kinds=("classification", "regression"), exact=False, carried=("moments", "adam")))
@dataclass(frozen=True)
class Reptile:
    """Learn an initialisation close to every task's trained weights (Nichol et al. 2018)."""

    inner_lr: Positive  # of Adam
    inner_steps: Count  # k
    inner_batch: Count  # examples in a minibatch
    beta2: Fraction  # of Adam, whose beta1 is 0: no momentum
    eps: Positive
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        """The weights; "moments", the second moment of each by full name; "adam", the number of its steps so far."""
        weights = draw_networks(self.backbone, self.head)
        moments = {name: torch.zeros_like(p) for name, p in flatten(weights).items()}
        return {**weights, "moments": moments, "adam": {"steps": torch.zeros(())}}

    def weights(self, theta: Theta) -> Theta:
        """The weights in theta, those of norm layers included, without Adam's state."""
        return select(theta, *(component for component in theta if component not in traits_of(self).carried))

    def minibatches(self, support: Examples) -> Iterator[Examples]:
        """Yield a minibatch for each inner step, cycling through the support with classes alternating."""
        x, y = support
        if self.spec.kind == "classification":
            ranks = (y[:, None] == y).tril().sum(1)  # of each example in its class: 1, 2, ...
            order = (ranks * self.spec.output_size + y).argsort(stable=True)
            x, y = x[order], y[order]
        size = min(self.inner_batch, len(x))
        for start in range(0, self.inner_steps * size, size):
            yield Examples(x.roll(-start, 0)[:size], y.roll(-start, 0)[:size])

    @torch.no_grad()
    def step(self, phi: Theta, batch: Examples) -> Theta:
        """Take one step of Adam (Kingma & Ba 2015, Algorithm 1 with beta1 = 0). Returns all of theta's components."""

        def loss(weights: Theta) -> Tensor:
            return objectives.loss(self.spec.kind, self.predict(phi, weights, batch.x), batch.y)

        weights = self.weights(phi)
        gradient = gradient_of(loss, weights)
        steps, before = phi["adam"]["steps"] + 1, phi["moments"]
        moments = {n: self.beta2 * before[n] + (1 - self.beta2) * g.square() for n, g in flatten(gradient).items()}
        unbiased = 1 - self.beta2**steps

        def move(component: str, name: str, p: Tensor) -> Tensor:
            scale = (moments[f"{component}.{name}"] / unbiased).sqrt() + self.eps
            return p - self.inner_lr * gradient[component][name] / scale

        moved = {c: {name: move(c, name, p) for name, p in params.items()} for c, params in weights.items()}
        return {**moved, "moments": moments, "adam": {"steps": steps}}

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """Yield phi_0 .. phi_k, each with all of theta's components.

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values, in order of class.
        """
        phi = theta
        yield phi
        for batch in self.minibatches(support):
            phi = self.step(phi, batch)
            yield phi

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = forward(self.backbone, (phi["backbone"], phi["norm"]), x)
        return forward(self.head, phi["head"], features)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """1/2 |theta - phi|^2 with phi fixed: its gradient theta - phi is the step of Algorithm 1 and, as the mean over
        tasks, of Algorithm 2. Training uses the support alone; the metric is measured on the queries.
        """
        phi = self.adapt(theta, episode.support)
        change = {c: {name: p - phi[c][name] for name, p in params.items()} for c, params in theta.items()}
        pull = torch.stack([d.square().sum() for d in flatten(self.weights(change)).values()]).sum() / 2
        passed_on = slope(select(theta, *traits_of(self).carried), change)
        prediction = self.predict(theta, phi, episode.query.x)
        return pull + passed_on, judge(self.spec, prediction, episode.query.y)[1]

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline metric after the last inner step, and after each from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)
