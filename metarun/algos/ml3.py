"""Meta-learning via learned loss (ML^3).

Bechtle, Molchanov, Chebotar, Grefenstette, Righetti, Sukhatme, Meier, "Meta Learning via Learned Loss", ICPR 2021,
https://arxiv.org/abs/1906.05374.

As in the paper nothing but the loss is learned: the learner's weights are drawn anew for every outer step, so that
the loss cannot rely on an initialisation. Here they are PyTorch's initial ones, all tasks of a step start from the
same, and a trained model's are those of the step after the last. Norm layers keep scale 1 and shift 0.

`form` is the learned loss M(prediction, y), summed over the outputs of an example and averaged over the examples; its
arguments are an output and its target or, in classification, a class's probability and 1 for the right class, else 0:
- mlp: the paper's network, without biases, ReLU and at last softplus. It starts as noise.
- cubic: a p + b p^2 + c p y + d p^3 + e p^2 y + f p y^2, which a person can read, after Gonzalez & Miikkulainen 2021,
  https://arxiv.org/abs/2002.00059. It starts as the squared error, or the cross-entropy to second order about p = 1/2;
  there a does nothing, since probabilities sum to 1, and c and f are one.
- scaled: the task's own loss times a learned number: what is won by a learned rate alone, to compare with.

Unlike the authors' code, whose outer loss is that of the support, the loss is learned on the queries, as printed.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import copy_networks, last, named, outer_step, own_generator, select, slope, tick, unroll
from metarun.core.learned import Chart, of_losses
from metarun.core.objectives import episode_loss, metrics_by_step, one_hot
from metarun.core.perceptron import draw_perceptron, perceptron
from metarun.core.seeding import hashed
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta

AS_MSE = {"p": 0.0, "p2": 1.0, "py": -2.0, "p3": 0.0, "p2y": 0.0, "py2": 0.0}
AS_CROSS_ENTROPY = {"p": 0.0, "p2": 0.0, "py": -4.0, "p3": 0.0, "p2y": 2.0, "py2": 0.0}


@register("algo", "ml3", Traits(kinds=("classification", "regression"), carried=("backbone", "norm", "head", "clock")))
@dataclass(frozen=True)
class ML3:
    """Learn the loss by which a new network is trained on the support (Bechtle et al. 2021)."""

    form: Literal["mlp", "cubic", "scaled"]
    hidden: list[Count]  # widths of the form mlp
    inner_lr: Positive  # alpha
    inner_steps: Whole
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        """With the learner at hand. The clock starts anywhere, so that two seeds have other learners."""
        norm = copy_networks(self.backbone)["norm"]
        with own_generator():
            start = torch.randint(2**20, ()).to(torch.get_default_dtype())
            loss = self.initial_loss()
        return {**self.learner(start), "norm": norm, "loss": loss, "clock": {"step": start}}

    def initial_loss(self) -> Params:
        if self.form == "scaled":
            return {"scale": torch.ones(())}
        if self.form == "cubic":
            start = AS_CROSS_ENTROPY if self.spec.kind == "classification" else AS_MSE
            return {name: torch.tensor(value) for name, value in start.items()}
        network = draw_perceptron(2, *self.hidden, 1, bias=False)
        return {name: nn.init.xavier_uniform_(weight) for name, weight in network.items()}

    def learner(self, step: Tensor) -> Theta:
        """A network that has learned nothing: all weights and biases uniform within 1/sqrt(fan-in)."""
        shapes = select(copy_networks(self.backbone, self.head), "backbone", "head")
        sizes = [p.numel() for p in named(shapes).values()]
        draws = iter(hashed(sum(sizes), step).split(sizes))

        def drawn(params: Params, name: str) -> Tensor:
            layer = params[f"{name.removesuffix('bias')}weight"] if name.endswith("bias") else params[name]
            return next(draws).view_as(params[name]) / layer[0].numel() ** 0.5

        return {c: {name: drawn(params, name) for name in params} for c, params in shapes.items()}

    def loss(self, w: Params, prediction: Tensor, y: Tensor) -> Tensor:
        """M: predictions [n, outputs], y [n] or [n, outputs] -> []."""
        if self.form == "scaled":
            return w["scale"] * objectives.loss(self.spec.kind, prediction, y)
        p, target = prediction, y
        if self.spec.kind == "classification":
            p, target = prediction.softmax(-1), one_hot(y, self.spec.output_size).to(prediction.dtype)
        return self.pointwise(w, p, target).sum(-1).mean()

    def pointwise(self, w: Params, p: Tensor, y: Tensor) -> Tensor:
        """M of single outputs and targets, both [...], as mlp or cubic."""
        if self.form == "cubic":
            return p * (w["p"] + w["py"] * y + w["py2"] * y**2) + p**2 * (w["p2"] + w["p2y"] * y) + w["p3"] * p**3
        return F.softplus(perceptron(w, torch.stack([p, y], dim=-1)))[..., 0]

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """phi_{j+1} = phi_j - alpha grad M(f(x; phi_j), y) from a new network phi_0: yields phi_0 .. phi_J.

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values.
        """

        def loss(phi: Theta) -> Tensor:
            return self.loss(theta["loss"], self.predict(theta, phi, support.x), support.y)

        learner = {c: {name: p.detach() for name, p in theta[c].items()} for c in ("backbone", "head")}
        return unroll(loss, learner, lr=self.inner_lr, steps=self.inner_steps)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        norm = {name: p.detach() for name, p in theta["norm"].items()}
        features = functional_call(self.backbone, (phi["backbone"], norm), (x,))
        return functional_call(self.head, phi["head"], (features,))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """The task's own loss on the queries after training by the learned one; and the next learner is handed on."""
        loss, metrics = episode_loss(self, self.spec, theta, episode)
        following = self.learner(outer_step(theta) + 1)
        change = {c: {name: theta[c][name] - p for name, p in params.items()} for c, params in following.items()}
        return loss + slope(select(theta, *change), change) + tick(theta), metrics

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)

    def explained(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """The learned loss and its slope; of a cubic its coefficients are all there is to it."""
        return of_losses(self.spec, {"learned": partial(self.loss, theta["loss"])})
