"""Meta-Learner LSTM.

Ravi, Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017, https://openreview.net/forum?id=rJY0-Kcll;
code: https://github.com/twitter-research/meta-learning-lstm.

The cell state of an LSTM with one cell per weight is the learner's weights: c_t = f_t c_{t-1} + i_t (-gradient).
As in the authors' code an ordinary LSTM, shared by all weights, reads each weight's gradient and the loss, and its
output stands for these in the gates; all learned weights but the learner's start within 0.01 of 0, f near 1
and i near 0.01. `first_order` is the paper's assumption that gradient and loss do not depend on the learner's weights.

Unlike there each update sees the whole support; norm layers' parameters are meta-learned but not adapted, and what norm
layers normalise by at meta-test is `norm` (the code: averages over the task's own updates).
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import draw_networks, gradient_of, last, log_and_sign, named, own_generator, select, stacked
from metarun.core.learned import Chart, by_step
from metarun.core.objectives import episode_loss, metrics_by_step
from metarun.core.recurrent import LSTMCell
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta

P = 10.0  # of the preprocessing of gradient and loss


@register("algo", "metalstm", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(eq=False)
class MetaLSTM:
    """Learn an initialisation and an LSTM that updates each weight by its gradient (Ravi & Larochelle 2017)."""

    hidden: Count  # of the LSTM that reads gradient and loss
    inner_steps: Whole
    first_order: bool
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def __post_init__(self) -> None:
        self.reader = LSTMCell(4, self.hidden)

    def init(self) -> Theta:
        """MAML's components, of which c_0 is made; "reader": the LSTM; and "forget" and "enter": the gates f and i."""

        def near(middle: float, spread: float, *shape: int) -> Tensor:
            return torch.empty(shape).uniform_(middle - spread, middle + spread)

        theta = draw_networks(self.backbone, self.head)
        with own_generator():
            theta["reader"] = {name: near(0, 0.01, *p.shape) for name, p in self.reader.named_parameters()}
            for gate, bias in {"forget": 4.5, "enter": -4.5}.items():
                theta[gate] = {"weight": near(0, 0.01, self.hidden + 2), "bias": near(bias, 0.5)}
        return theta

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """phi_0 .. phi_J.

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values.
        """
        yield select(theta, "backbone", "head")
        for phi, _, _ in self.updates(theta, support):
            yield phi

    def updates(self, theta: Theta, support: Examples) -> Iterator[tuple[Theta, Theta, Theta]]:
        """phi_j = f_j phi_{j-1} - i_j grad L(phi_{j-1}; support), weight by weight (Eq. 2): yields phi_j, f_j, i_j.

        The gates of a weight w see what the reader says of gradient and loss, w itself and the same gate before.
        """

        def loss(phi: Theta) -> Tensor:
            return objectives.loss(self.spec.kind, self.predict(theta, phi, support.x), support.y)

        def gate(name: str, said: Tensor, c: Tensor, before: Tensor) -> Tensor:
            seen = torch.cat([said, c[:, None], before[:, None]], dim=1)  # [W, hidden + 2]
            return torch.sigmoid(seen @ theta[name]["weight"] + theta[name]["bias"])

        phi = select(theta, "backbone", "head")
        c = flat(phi)
        f = i = torch.zeros_like(c)
        state = self.reader.start(c[:, None])
        for _ in range(self.inner_steps):
            with torch.no_grad() if self.first_order else nullcontext():
                gradient, value = flat(gradient_of(loss, phi)), loss(phi)
            x = torch.cat([log_and_sign(value, P).expand(len(c), 2), log_and_sign(gradient, P)], dim=1)
            state = functional_call(self.reader, theta["reader"], (x, state))
            f, i = gate("forget", state[0], c, f), gate("enter", state[0], c, i)
            c = f * c - i * gradient
            phi = shaped(c, phi)
            yield phi, shaped(f, phi), shaped(i, phi)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = functional_call(self.backbone, (phi["backbone"], theta["norm"]), (x,))
        return functional_call(self.head, phi["head"], (features,))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss of the last cell state (Algorithm 1)."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline figure, and the same after each inner step from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)

    def explained(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """Of each layer and step the mean gates of its weights: f, what is kept of them, and i, their rates."""
        _, f, i = zip(*self.updates(theta, episode.support))
        gates = {"kept": f, "rates": i}
        return {name: by_step(stacked([means(gate) for gate in each])) for name, each in gates.items()}


def means(gate: Theta) -> Params:
    """[] for each layer."""
    return {name: p.mean() for name, p in named(gate).items()}


def flat(phi: Theta) -> Tensor:
    """All weights one after another: [W]."""
    return torch.cat([p.flatten() for p in named(phi).values()])


def shaped(c: Tensor, like: Theta) -> Theta:
    """The inverse of `flat`."""
    parts = iter(c.split([p.numel() for p in named(like).values()]))
    return {comp: {name: next(parts).view_as(p) for name, p in params.items()} for comp, params in like.items()}
