"""Meta-learning with task-adaptive loss function (MeTAL), with MAML's initialisation.

Baik, Choi, Kim, Cho, Min, Lee, "Meta-Learning with Task-Adaptive Loss Function for Few-Shot Learning", ICCV 2021,
https://arxiv.org/abs/2110.03909; code: https://github.com/baiksung/MeTAL.

The published method is transductive: adaptation includes a learned loss of the queries' unlabelled predictions, and the
network sees support and queries as one batch. With `transductive: false` adaptation sees the support alone.

As in the authors' code a "layer" is a weight or a bias, and parameters of norm layers are meta-learned but not adapted.
Unlike in that code the outer loss is that of the queries alone, as printed, and after the last step the network sees
the queries without the support.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.formula import Formula, Meeting, fit_slopes
from metarun.core.inner import (
    at_step,
    draw_networks,
    flatten,
    forward,
    inner_step,
    last,
    layer_means,
    own_generator,
    select,
    stack_steps,
)
from metarun.core.learned import Chart, chart_losses
from metarun.core.objectives import episode_loss, metrics_by_step, one_hot
from metarun.core.perceptron import draw_perceptron, perceptron
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "metal", Traits(kinds=("classification",), sees_queries=True))
@dataclass(frozen=True)
class MeTAL:
    """MAML whose inner loop has learned losses of support and queries, adapted to the task (Baik et al. 2021)."""

    inner_lr: Positive  # alpha
    inner_steps: Count
    transductive: bool  # adaptation sees the queries' inputs
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        """MAML's components; for support and queries a "loss" and an "adapter" of it: J networks each, stacked."""
        theta = draw_networks(self.backbone, self.head)
        layers, ways = len(flatten(select(theta, "backbone", "head"))), self.spec.output_size
        sizes = {"support": (1 + layers, 1 + layers + 2 * ways)}  # inputs about the task, and about an example
        if self.transductive:
            sizes["query"] = (layers + ways + 1,) * 2
        with own_generator():
            for part, (of_task, of_example) in sizes.items():
                losses = [draw_perceptron(of_example, of_example, 1) for _ in range(self.inner_steps)]
                adapters = [draw_perceptron(of_task, of_task, 2 * len(losses[0])) for _ in losses]
                factors = {name: torch.zeros(self.inner_steps, len(losses[0])) for name in ("scale", "shift")}
                theta[f"{part}_loss"] = stack_steps(losses)
                theta[f"{part}_adapter"] = stack_steps(adapters) | factors
        return theta

    def support_loss(self, theta: Theta, phi: Theta, logits: Tensor, y: Tensor, j: int) -> Tensor:
        """Cross-entropy plus a learned loss, whose inputs are it, mean weights, an example's logits and its label."""
        entropy = objectives.loss(self.spec.kind, logits, y)
        task = torch.cat([entropy[None], layer_means(phi)])
        labels = one_hot(y, self.spec.output_size).to(logits.dtype)
        examples = standardise(torch.cat([task.expand(len(y), -1), logits, labels], dim=1))
        return entropy + learned_loss(theta, "support", examples, standardise(task), j)

    def query_loss(self, theta: Theta, phi: Theta, logits: Tensor, j: int) -> Tensor:
        """A learned loss, whose inputs are mean weights, an example's logits and their negative entropy."""
        log_p = logits.log_softmax(-1)
        negative_entropy = (log_p.exp() * log_p).sum(-1, keepdim=True)
        examples = torch.cat([layer_means(phi).expand(len(logits), -1), logits, negative_entropy], dim=1)
        examples = standardise(examples)
        return learned_loss(theta, "query", examples, examples.mean(0), j)

    def trajectory(self, theta: Theta, support: Examples, queries: Tensor | None) -> Iterator[Theta]:
        """Yield phi_0 .. phi_J of phi_{j+1} = phi_j - alpha grad (support loss + query loss of step j).

        support.x: [n, *input], support.y: [n]; queries: [q, *input], or None to adapt to the support alone.
        """

        def loss(phi: Theta, j: int) -> Tensor:
            if queries is None:
                return self.support_loss(theta, phi, self.predict(theta, phi, support.x), support.y, j)
            logits = self.predict(theta, phi, torch.cat([support.x, queries]))
            of_support, of_queries = logits[: len(support.y)], logits[len(support.y) :]
            return self.support_loss(theta, phi, of_support, support.y, j) + self.query_loss(theta, phi, of_queries, j)

        phi = select(theta, "backbone", "head")
        yield phi
        for j in range(self.inner_steps):
            phi = inner_step(partial(loss, j=j), phi, lr=self.inner_lr)
            yield phi

    def adapt(self, theta: Theta, support: Examples, queries: Tensor | None = None) -> Theta:
        return last(self.trajectory(theta, support, queries))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        features = forward(self.backbone, (phi["backbone"], theta["norm"]), x)
        return forward(self.head, phi["head"], features)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss after adaptation."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline metric after the last inner step, and after each from 0 on."""
        return metrics_by_step(self, self.spec, theta, episode, self.states(theta, episode))

    def states(self, theta: Theta, episode: Episode) -> Iterator[Theta]:
        """The `trajectory` of this task."""
        return self.trajectory(theta, episode.support, episode.query.x if self.transductive else None)

    def explain(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """Chart each inner step's loss of the support, cross-entropy included, at that step's weights."""
        states = enumerate(islice(self.states(theta, episode), self.inner_steps))
        losses = {f"step {j + 1}": partial(self.support_loss, theta, phi, j=j) for j, phi in states}
        return chart_losses(self.spec, losses)

    def simplify(self, theta: Theta, tasks: Sequence[Episode]) -> tuple["WrittenMeTAL", Theta, dict[str, Formula]]:
        """The learned losses as sums of few terms: method, theta, and how they fit. Cross-entropy stays as it is.

        The slopes in the logits are fitted, where adaptation to these tasks meets them.
        """
        met: dict[str, list[list[Meeting]]] = defaultdict(lambda: [[] for _ in range(self.inner_steps)])
        for task in tasks:
            for j, phi in enumerate(islice(self.states(theta, task), self.inner_steps)):
                for part, meeting in self.meet(theta, phi, task, j):
                    met[part][j].append(meeting)
        found = {part: [fit_slopes(meetings) for meetings in by_step] for part, by_step in met.items()}
        written = {}
        for part, by_step in found.items():
            names = met[part][0][0].terms(met[part][0][0].x)
            coefficients = [{name: torch.tensor(f.coefficients.get(name, 0.0)) for name in names} for f in by_step]
            written[f"{part}_formula"] = stack_steps(coefficients)
        method = WrittenMeTAL(**{field.name: getattr(self, field.name) for field in fields(self)})
        named = {f"{part} loss {j + 1}": f for part, by_step in found.items() for j, f in enumerate(by_step)}
        return method, {**theta, **written}, named

    def meet(self, theta: Theta, phi: Theta, task: Episode, j: int) -> Iterator[tuple[str, Meeting]]:
        """Yield the learned loss of the support, and of the queries, at the logits that step j sees."""
        support, query = task
        seen = torch.cat([support.x, query.x]) if self.transductive else support.x
        ours, theirs = self.predict(theta, phi, seen).tensor_split([len(support.y)])

        def learned(logits: Tensor) -> Tensor:
            entropy = objectives.loss(self.spec.kind, logits, support.y)
            return self.support_loss(theta, phi, logits, support.y, j) - entropy

        yield "support", Meeting(ours, learned, partial(list_terms, y=support.y))
        if self.transductive:
            yield "query", Meeting(theirs, partial(self.query_loss, theta, phi, j=j), list_terms)


class WrittenMeTAL(MeTAL):
    """MeTAL whose learned losses are formulas: theta has the coefficients, [J] each, of `list_terms`."""

    def support_loss(self, theta: Theta, phi: Theta, logits: Tensor, y: Tensor, j: int) -> Tensor:
        """Cross-entropy plus the formula."""
        entropy = objectives.loss(self.spec.kind, logits, y)
        return entropy + weigh(at_step(theta["support_formula"], j), list_terms(logits, y))

    def query_loss(self, theta: Theta, phi: Theta, logits: Tensor, j: int) -> Tensor:
        """The formula."""
        return weigh(at_step(theta["query_formula"], j), list_terms(logits))


def list_terms(logits: Tensor, y: Tensor | None = None) -> dict[str, Tensor]:
    """Terms of a formula, of logits z [n, N], probabilities p and labels y: means over examples, sums over classes."""
    log_p = logits.log_softmax(-1)
    p = log_p.exp()
    terms = {"z": logits, "z2": logits**2, "z3": logits**3, "p2": p**2, "plogp": p * log_p}
    if y is not None:
        label = one_hot(y, logits.shape[-1])
        terms |= {"yz": logits * label, "yz2": logits**2 * label, "yp": p * label, "ylogp": log_p * label}
    return {name: values.sum(-1).mean() for name, values in terms.items()}


def weigh(coefficients: Mapping[str, Tensor], terms: Mapping[str, Tensor]) -> Tensor:
    """The sum of terms by their coefficients."""
    return torch.stack([coefficients[name] * value for name, value in terms.items()]).sum()


def standardise(x: Tensor) -> Tensor:
    """Shift and scale all numbers of x to mean 0 and standard deviation 1."""
    return (x - x.mean()) / (x.std() + 1e-12)


def learned_loss(theta: Theta, part: str, examples: Tensor, task: Tensor, j: int) -> Tensor:
    """The mean learned loss of examples [n, d], from a network whose weights and biases depend on the task [d'].

    phi' = (1 + a gamma) phi + b beta, where gamma and beta are generated from the task, and a and b are learned from 0.
    """
    loss, adapter = at_step(theta[f"{part}_loss"], j), at_step(theta[f"{part}_adapter"], j)
    gamma, beta = perceptron(adapter, task).chunk(2)
    factors, offsets = 1 + adapter["scale"] * gamma, adapter["shift"] * beta
    modulated = {name: factor * p + offset for (name, p), factor, offset in zip(loss.items(), factors, offsets)}
    return perceptron(modulated, examples).mean()
