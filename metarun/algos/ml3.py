"""Meta-learning via learned loss (ML^3).

Bechtle, Molchanov, Chebotar, Grefenstette, Righetti, Sukhatme, Meier, "Meta Learning via Learned Loss", ICPR 2021,
https://arxiv.org/abs/1906.05374.

As in the paper only the loss is learned. The learner's weights are drawn again for every outer step, so the loss cannot
rely on an initialisation. Here they have the distribution of PyTorch's initial weights, all tasks of a step start from
the same weights, and a trained model starts from those of the step after the last. Scale and shift of norm layers stay
1 and 0.

`form` is the learned loss M(p, y), summed over the outputs of an example and averaged over examples. In regression p is
an output and y its target; in classification p is a class's probability, and y is 1 for the right class and else 0.
- mlp: the paper's network without biases, with ReLU, and softplus at the end. It starts as noise.
- cubic: a p + b p^2 + c p y + d p^3 + e p^2 y + f p y^2, a readable form after Gonzalez & Miikkulainen 2021,
  https://arxiv.org/abs/2002.00059. It starts as the squared error or, in classification, as the cross-entropy to second
  order about p = 1/2. In classification a has no effect, since probabilities sum to 1, and c and f act alike.
- scaled: the task's own loss times a learned number, to compare with: this is the effect of a learned rate alone.

The outer loss is that of the queries, as printed; in the authors' code it is that of the support.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.formula import Formula, Meeting, fit_slopes
from metarun.core.inner import (
    copy_networks,
    flatten,
    forward,
    last,
    outer_step,
    own_generator,
    select,
    slope,
    unroll,
)
from metarun.core.learned import Chart, chart_losses
from metarun.core.objectives import episode_loss, metrics_by_step, one_hot
from metarun.core.perceptron import draw_perceptron, perceptron
from metarun.core.seeding import hash_uniform
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta

AS_MSE = {"p": 0.0, "p2": 1.0, "py": -2.0, "p3": 0.0, "p2y": 0.0, "py2": 0.0}
AS_CROSS_ENTROPY = {"p": 0.0, "p2": 0.0, "py": -4.0, "p3": 0.0, "p2y": 2.0, "py2": 0.0}
LARGEST = 5.0  # of outputs and targets in regression between which a formula is fitted


@register(
    "algo", "ml3", Traits(kinds=("classification", "regression"), carried=("backbone", "norm", "head", "clock", "salt"))
)
@dataclass(frozen=True)
class ML3:
    """Learn the loss that trains a new network on the support (Bechtle et al. 2021)."""

    form: Literal["mlp", "cubic", "scaled"]
    hidden: list[Count]  # widths of the form mlp
    inner_lr: Positive  # alpha
    inner_steps: Whole
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def init(self) -> Theta:
        """The learned "loss"; the learner of the first step; a "salt", so that the learners depend on the seed."""
        norm = copy_networks(self.backbone)["norm"]
        with own_generator():
            salt = torch.randint(2**20, ()).to(torch.get_default_dtype())
            loss = self.draw_loss()
        clock = {"step": torch.zeros(())}
        return {**self.draw_learner(salt), "norm": norm, "loss": loss, "clock": clock, "salt": {"learner": salt}}

    def draw_loss(self) -> Params:
        """M's initial weights, random only in the form mlp."""
        if self.form == "scaled":
            return {"scale": torch.ones(())}
        if self.form == "cubic":
            start = AS_CROSS_ENTROPY if self.spec.kind == "classification" else AS_MSE
            return {name: torch.tensor(value) for name, value in start.items()}
        network = draw_perceptron(2, *self.hidden, 1, bias=False)
        return {name: nn.init.xavier_uniform_(weight) for name, weight in network.items()}

    def draw_learner(self, number: Tensor) -> Theta:
        """The untrained network of this number: weights and biases uniform within 1/sqrt(fan-in). number: []."""
        shapes = select(copy_networks(self.backbone, self.head), "backbone", "head")
        sizes = [p.numel() for p in flatten(shapes).values()]
        draws: Iterator[Tensor] = iter(hash_uniform(sum(sizes), number).split(sizes))

        def draw(params: Params, name: str) -> Tensor:
            layer = params[f"{name.removesuffix('bias')}weight"] if name.endswith("bias") else params[name]
            bound: float = layer[0].numel() ** 0.5
            return next(draws).view_as(params[name]) / bound

        return {c: {name: draw(params, name) for name in params} for c, params in shapes.items()}

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

    def simplify(self, theta: Theta, tasks: Sequence[Episode]) -> tuple["ML3", Theta, dict[str, Formula]] | None:
        """The learned loss of the form mlp as one of the form cubic with few terms: method, theta, and how it fits.

        The slopes in p are fitted on a grid, of both classes or of outputs and targets within LARGEST; the loss is the
        same in all tasks.
        """
        if self.form != "mlp":
            return None
        classes = self.spec.kind == "classification"
        outputs = torch.linspace(0, 1, 101) if classes else torch.linspace(-LARGEST, LARGEST, 101)
        p, y = torch.cartesian_prod(outputs, torch.tensor([0.0, 1.0]) if classes else outputs[::5]).T
        cubic = replace(self, form="cubic")
        single = {name: {other: torch.tensor(float(other == name)) for other in AS_MSE} for name in AS_MSE}

        def terms(p: Tensor) -> Params:
            return {name: cubic.pointwise(w, p, y).sum() for name, w in single.items()}

        formula = fit_slopes([Meeting(p, lambda p: self.pointwise(theta["loss"], p, y).sum(), terms)])
        loss = {name: torch.tensor(formula.coefficients.get(name, 0.0)) for name in AS_MSE}
        return cubic, {**theta, "loss": loss}, {"M(p, y)": formula}

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """Yield phi_0 .. phi_J of phi_{j+1} = phi_j - alpha grad M(f(x; phi_j), y), from a new network phi_0.

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
        features = forward(self.backbone, (phi["backbone"], norm), x)
        return forward(self.head, phi["head"], features)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """The task's own loss on the queries, after training by the learned loss. Passes on the next step's learner."""
        loss, metrics = episode_loss(self, self.spec, theta, episode)
        following = self.draw_learner(theta["salt"]["learner"].detach() + outer_step(theta) + 1)
        change = {c: {name: theta[c][name] - p for name, p in params.items()} for c, params in following.items()}
        return loss + slope(select(theta, *change), change), metrics

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline metric after the last inner step, and after each from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)

    def explain(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """Chart the learned loss and its slope."""
        return chart_losses(self.spec, {"learned": partial(self.loss, theta["loss"])})
