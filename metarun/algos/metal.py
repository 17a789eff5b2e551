"""Meta-learning with task-adaptive loss function (MeTAL), with MAML's initialisation.

Baik, Choi, Kim, Cho, Min, Lee, "Meta-Learning with Task-Adaptive Loss Function for Few-Shot Learning", ICCV 2021,
https://arxiv.org/abs/2110.03909; code: https://github.com/baiksung/MeTAL.

The published method is transductive: a learned loss of the queries' unlabelled predictions has a part in adaptation,
and support and queries pass the network as one batch there. With `transductive: false` neither is so.

As in the authors' code a "layer" is a weight or a bias, and norm layers' parameters are meta-learned but not adapted.
Unlike there the outer loss is that of the queries, as printed, and not of the support as well; and after the last step
the queries pass the network without the support.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import (
    at_step,
    draw_networks,
    inner_step,
    last,
    layer_means,
    named,
    own_generator,
    select,
    stacked,
)
from metarun.core.learned import Chart, of_losses
from metarun.core.objectives import episode_loss, metrics_by_step, one_hot
from metarun.core.perceptron import draw_perceptron, perceptron
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "metal", Traits(kinds=("classification",), sees_queries=True))
@dataclass(frozen=True)
class MeTAL:
    """MAML with learned losses of support and queries in its inner loop, adapted to the task (Baik et al. 2021)."""

    inner_lr: Positive  # alpha
    inner_steps: Count
    transductive: bool  # the queries' inputs have a part in adaptation
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        """MAML's components and, for support and queries, a loss and what adapts it: J networks each, stacked."""
        theta = draw_networks(self.backbone, self.head)
        layers, ways = len(named(select(theta, "backbone", "head"))), self.spec.output_size
        sizes = {"support": (1 + layers, 1 + layers + 2 * ways)}  # what each sees of the task, and of an example
        if self.transductive:
            sizes["query"] = (layers + ways + 1,) * 2
        with own_generator():
            for part, (of_task, of_example) in sizes.items():
                losses = [draw_perceptron(of_example, of_example, 1) for _ in range(self.inner_steps)]
                adapters = [draw_perceptron(of_task, of_task, 2 * len(losses[0])) for _ in losses]
                factors = {name: torch.zeros(self.inner_steps, len(losses[0])) for name in ("scale", "shift")}
                theta[f"{part}_loss"] = stacked(losses)
                theta[f"{part}_adapter"] = stacked(adapters) | factors
        return theta

    def support_loss(self, theta: Theta, phi: Theta, logits: Tensor, y: Tensor, j: int) -> Tensor:
        """Cross-entropy, and the learned loss of it, the mean weights, an example's logits and its label."""
        entropy = objectives.loss(self.spec.kind, logits, y)
        task = torch.cat([entropy[None], layer_means(phi)])
        labels = one_hot(y, self.spec.output_size).to(logits.dtype)
        examples = standardised(torch.cat([task.expand(len(y), -1), logits, labels], dim=1))
        return entropy + learned(theta, "support", examples, standardised(task), j)

    def query_loss(self, theta: Theta, phi: Theta, logits: Tensor, j: int) -> Tensor:
        """The learned loss of the mean weights, an example's logits and their negative entropy."""
        log_p = logits.log_softmax(-1)
        negative_entropy = (log_p.exp() * log_p).sum(-1, keepdim=True)
        examples = torch.cat([layer_means(phi).expand(len(logits), -1), logits, negative_entropy], dim=1)
        examples = standardised(examples)
        return learned(theta, "query", examples, examples.mean(0), j)

    def trajectory(self, theta: Theta, support: Examples, queries: Tensor | None) -> Iterator[Theta]:
        """phi_{j+1} = phi_j - alpha grad of cross-entropy and learned losses of step j: yields phi_0 .. phi_J.

        support.x: [n, *input], support.y: [n]; queries: [q, *input], where they are to have a part.
        """

        def loss(phi: Theta, j: int) -> Tensor:
            if queries is None:
                return self.support_loss(theta, phi, self.predict(theta, phi, support.x), support.y, j)
            logits = self.predict(theta, phi, torch.cat([support.x, queries]))
            ours, theirs = logits[: len(support.y)], logits[len(support.y) :]
            return self.support_loss(theta, phi, ours, support.y, j) + self.query_loss(theta, phi, theirs, j)

        phi = select(theta, "backbone", "head")
        yield phi
        for j in range(self.inner_steps):
            phi = inner_step(partial(loss, j=j), phi, lr=self.inner_lr)
            yield phi

    def adapt(self, theta: Theta, support: Examples, queries: Tensor | None = None) -> Theta:
        return last(self.trajectory(theta, support, queries))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        features = functional_call(self.backbone, (phi["backbone"], theta["norm"]), (x,))
        return functional_call(self.head, phi["head"], (features,))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss after adaptation."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        return metrics_by_step(self, self.spec, theta, episode, self.states(theta, episode))

    def states(self, theta: Theta, episode: Episode) -> Iterator[Theta]:
        """The task's `trajectory`."""
        return self.trajectory(theta, episode.support, episode.query.x if self.transductive else None)

    def explained(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """Of each inner step the loss of the support, cross-entropy included, at the weights where the task then is."""
        steps = enumerate(islice(self.states(theta, episode), self.inner_steps))
        return of_losses(self.spec, {f"step {j + 1}": partial(self.support_loss, theta, phi, j=j) for j, phi in steps})


def standardised(x: Tensor) -> Tensor:
    """All numbers of x less their mean, by their deviation."""
    return (x - x.mean()) / (x.std() + 1e-12)


def learned(theta: Theta, part: str, examples: Tensor, task: Tensor, j: int) -> Tensor:
    """Mean learned loss of the examples [n, d], by a network whose every weight and bias the task [d'] has modulated:
    phi' = (1 + a gamma) phi + b beta, where gamma and beta are generated, and a and b learned from 0 on.
    """
    loss, adapter = at_step(theta[f"{part}_loss"], j), at_step(theta[f"{part}_adapter"], j)
    gamma, beta = perceptron(adapter, task).chunk(2)
    factors, offsets = 1 + adapter["scale"] * gamma, adapter["shift"] * beta
    modulated = {name: factor * p + offset for (name, p), factor, offset in zip(loss.items(), factors, offsets)}
    return perceptron(modulated, examples).mean()
