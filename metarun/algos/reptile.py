"""Reptile: move the initialisation towards the weights that each task trains to.

Nichol, Achiam, Schulman, "On First-Order Meta-Learning Algorithms", 2018, https://arxiv.org/abs/1803.02999.
The outer step is the optimiser `sgd` without momentum, whose rate is the paper's epsilon, with the schedule `linear`.

As in the authors' code the inner Adam's second moments and step count live on from task to task, also into
meta-test, while the weights are put back: they are components of theta. With trainer.tasks_per_step=1 (Algorithm 1)
a task starts from the moments that the one before it left, exactly as there. With T tasks per step (the batched
version) theirs still run one after another; ours all start from the same moments, and the mean of what they leave is
handed on, so that the moments average over tasks and age by `inner_steps` per outer step and not by T times as many.

Further deviations. The authors shuffle a task's examples, and again after each pass; here the order is fixed (it is
random already which examples a task has) and goes round the classes, so minibatches are as balanced as their size
allows, and every pass is the same. The inner loss is a mean where theirs is a sum over the minibatch: no difference to
Adam but for eps. No graph is built: memory does not grow with the number of inner steps.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.registry import register, traits_of
from metarun.config.schema import Count, Fraction, Norm, Positive
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import draw_networks, gradient_of, last, named, select, slope
from metarun.core.objectives import judged, metrics_by_step
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "reptile", Traits(kinds=("classification", "regression"), carried=("moments", "clock")))
@dataclass(frozen=True)
class Reptile:
    """Learn an initialisation near to every task's trained weights (Nichol et al. 2018)."""

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
        """The weights, a second moment for each of them (named "component.name"), and the count of Adam's steps."""
        weights = draw_networks(self.backbone, self.head)
        moments = {name: torch.zeros_like(p) for name, p in named(weights).items()}
        return {**weights, "moments": moments, "clock": {"steps": torch.zeros(())}}

    def learned(self, theta: Theta) -> Theta:
        """All of theta but what is carried: every weight, those of norm layers too."""
        return select(theta, *(component for component in theta if component not in traits_of(self).carried))

    def minibatches(self, support: Examples) -> Iterator[Examples]:
        """One for each inner step: round and round the support, an example of each class after the other."""
        ways = self.spec.output_size if self.spec.kind == "classification" else 1
        x, y = (part.unflatten(0, (ways, -1)).transpose(0, 1).flatten(0, 1) for part in support)
        size = min(self.inner_batch, len(x))
        for start in range(0, self.inner_steps * size, size):
            yield Examples(x.roll(-start, 0)[:size], y.roll(-start, 0)[:size])

    @torch.no_grad()
    def step(self, phi: Theta, batch: Examples) -> Theta:
        """One step of Adam (Kingma & Ba 2015, Algorithm 1 with beta1 = 0): theta's components, changed."""

        def loss(weights: Theta) -> Tensor:
            return objectives.loss(self.spec.kind, self.predict(phi, weights, batch.x), batch.y)

        weights = self.learned(phi)
        gradient = gradient_of(loss, weights)
        steps, before = phi["clock"]["steps"] + 1, phi["moments"]
        moments = {n: self.beta2 * before[n] + (1 - self.beta2) * g.square() for n, g in named(gradient).items()}
        unbiased = 1 - self.beta2**steps

        def moved(component: str, name: str, p: Tensor) -> Tensor:
            scale = (moments[f"{component}.{name}"] / unbiased).sqrt() + self.eps
            return p - self.inner_lr * gradient[component][name] / scale

        stepped = {c: {name: moved(c, name, p) for name, p in params.items()} for c, params in weights.items()}
        return {**stepped, "moments": moments, "clock": {"steps": steps}}

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """phi_0 .. phi_k, each with all of theta's components.

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
        features = functional_call(self.backbone, (phi["backbone"], phi["norm"]), (x,))
        return functional_call(self.head, phi["head"], (features,))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """1/2 |theta - phi|^2 with phi held fixed: its gradient theta - phi is Algorithm 1's step (Algorithm 2's, as
        the mean over tasks). Only the support is learned from; the queries are what the headline figure is of."""
        phi = self.adapt(theta, episode.support)
        change = {c: {name: p - phi[c][name] for name, p in params.items()} for c, params in theta.items()}
        pull = torch.stack([d.square().sum() for d in named(self.learned(change)).values()]).sum() / 2
        handed_on = slope(select(theta, *traits_of(self).carried), change)
        prediction = self.predict(theta, phi, episode.query.x)
        return pull + handed_on, judged(self.spec, prediction, episode.query.y)[1]

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)
