"""MAML++.

Antoniou, Edwards, Storkey, "How to train your MAML", ICLR 2019, https://arxiv.org/abs/1810.09502.

The cosine schedule of the outer rate is `schedule=cosine`. As in the authors' code norm layers use the statistics
of the batch at hand throughout, their parameters are meta-learned per step but not adapted, and the query after a
step is normalised with that step's parameters. A "layer" of the learned rates is a weight or a bias.

Unlike there, the loss weights are annealed by outer step, not by epoch of 500, and without the floor of 0.03 / J;
and both the queries of steps whose weight is 0 and unused second derivatives are computed all the same, so that a
step is one pure function throughout training.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import at_step, draw_networks, inner_step, last, named, outer_step, select, tick
from metarun.core.learned import Chart, by_step
from metarun.core.objectives import judged, metrics_by_step
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "mamlpp", Traits(kinds=("classification", "regression"), carried=("clock",), ragged=True))
@dataclass(frozen=True)
class MAMLPlusPlus:
    """MAML with a loss after every inner step, learned rates and norm parameters per step (Antoniou et al. 2019)."""

    inner_lr: Positive  # of every layer and step at the start
    inner_steps: Count
    multi_step_steps: Whole  # outer steps in which the loss moves from all inner steps alike to the last alone
    first_order_steps: Whole  # outer steps without second derivatives
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        """MAML's components with "norm" per step, [J, C] each; "lr": [J] for each layer, by full name; and "clock"."""
        theta = draw_networks(self.backbone, self.head)
        norm = {name: p.expand(self.inner_steps, *p.shape).clone() for name, p in theta["norm"].items()}
        adapted = named(select(theta, "backbone", "head"))
        lr = {name: p.new_full((self.inner_steps,), self.inner_lr) for name, p in adapted.items()}
        return {**theta, "norm": norm, "lr": lr, "clock": {"step": torch.zeros(())}}

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """phi_0 .. phi_J: MAML's inner loop with the rates and the norm parameters of each step (section 4).

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values. A state holds the adapted
        components and the norm parameters that queries see.
        """

        def loss(adapted: Theta, norm: Params) -> Tensor:
            prediction = self.predict(theta, {**adapted, "norm": norm}, support.x)
            return objectives.loss(self.spec.kind, prediction, support.y)

        first_order = outer_step(theta) < self.first_order_steps
        adapted = select(theta, "backbone", "head")
        yield {**adapted, "norm": at_step(theta["norm"], 0)}
        for j in range(self.inner_steps):
            norm = at_step(theta["norm"], j)
            lr = at_step(theta["lr"], j)
            adapted = inner_step(partial(loss, norm=norm), adapted, lr=lr, first_order=first_order)
            yield {**adapted, "norm": norm}

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = functional_call(self.backbone, (phi["backbone"], phi["norm"]), (x,))
        return functional_call(self.head, phi["head"], (features,))

    def importance(self, step: Tensor) -> Tensor:
        """v_1 .. v_J at an outer step: 1/J each at first, then along a line to 0, .., 0, 1. [] -> [J]."""
        done = (step / self.multi_step_steps).clamp(max=1) if self.multi_step_steps else torch.ones_like(step)
        final = torch.arange(1, self.inner_steps + 1, device=step.device) == self.inner_steps
        return (1 - done) / self.inner_steps + done * final

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Sum over the steps of v_j times the query loss after step j (section 4); metrics after the last."""
        _, *states = self.trajectory(theta, episode.support)
        predictions = [self.predict(theta, phi, episode.query.x) for phi in states]
        losses, metrics = zip(*(judged(self.spec, prediction, episode.query.y) for prediction in predictions))
        return self.importance(outer_step(theta)) @ torch.stack(losses) + tick(theta), metrics[-1]

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)

    def explained(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """The rate of each layer at each step."""
        return {"rates": by_step(theta["lr"])}
