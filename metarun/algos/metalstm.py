"""Meta-Learner LSTM.

Ravi, Larochelle, "Optimization as a Model for Few-Shot Learning", ICLR 2017, https://openreview.net/forum?id=rJY0-Kcll;
code: https://github.com/twitter-research/meta-learning-lstm.

The learner's weights are the cell state of an LSTM with one cell per weight: c_t = f_t c_{t-1} + i_t (-gradient). As in
the authors' code, an ordinary LSTM that all weights share reads each weight's gradient and the loss, and its output
takes their place in the gates. All learned weights except the learner's start within 0.01 of 0, f near 1, and i near
0.01. `first_order` is the paper's assumption that gradient and loss do not depend on the learner's weights.

Unlike in that code a gate sees its own last value after the sigmoid (there: before it), parameters of norm layers are
meta-learned but not adapted, and `norm` sets what norm layers normalise by at meta-test (there: averages over the
task's own updates). The code divides the mean gradient once more by the size of the support.
"""

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from metarun.config.registry import register
from metarun.config.schema import Count, Norm, Whole
from metarun.config.traits import Traits
from metarun.core import objectives
from metarun.core.inner import (
    draw_networks,
    flatten,
    forward,
    gradient_of,
    last,
    log_and_sign,
    own_generator,
    select,
    stack_steps,
)
from metarun.core.learned import Chart, chart_by_step
from metarun.core.objectives import episode_loss, metrics_by_step
from metarun.core.recurrent import LSTMCell, step_cell
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta

P = 10.0  # preprocessing of gradient and loss: see log_and_sign


@register("algo", "metalstm", Traits(kinds=("classification", "regression"), ragged=True))
@dataclass(eq=False)
class MetaLSTM:
    """Learn an initialisation and an LSTM that updates each weight by its gradient (Ravi & Larochelle 2017)."""

    hidden: Count  # units of the LSTM that reads gradient and loss
    inner_steps: Whole
    first_order: bool
    norm: Norm
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec

    def __post_init__(self) -> None:
        self.reader = LSTMCell(4, self.hidden)  # template

    def init(self) -> Theta:
        """MAML's components (c_0); "reader", the LSTM; "forget" and "enter", the gates f and i."""

        def draw_near(middle: float, spread: float, *shape: int) -> Tensor:
            return torch.empty(shape).uniform_(middle - spread, middle + spread)

        theta = draw_networks(self.backbone, self.head)
        with own_generator():
            theta["reader"] = {name: draw_near(0, 0.01, *p.shape) for name, p in self.reader.named_parameters()}
            for gate, bias in {"forget": 4.5, "enter": -4.5}.items():
                theta[gate] = {"weight": draw_near(0, 0.01, self.hidden + 2), "bias": draw_near(bias, 0.5)}
        return theta

    def trajectory(self, theta: Theta, support: Examples) -> Iterator[Theta]:
        """Yield phi_0 .. phi_J.

        support.x: [n, *input], support.y: [n] class indices or [n, *output] values.
        """
        yield select(theta, "backbone", "head")
        for phi, _, _ in self.updates(theta, support):
            yield phi

    def updates(self, theta: Theta, support: Examples) -> Iterator[tuple[Theta, Theta, Theta]]:
        """Yield phi_j, f_j, i_j of phi_j = f_j phi_{j-1} - i_j grad L(phi_{j-1}; support), weight by weight (Eq. 2).

        A gate of a weight w sees the reader's output for w, w itself and that gate's value at the step before.
        """

        def loss(phi: Theta) -> Tensor:
            return objectives.loss(self.spec.kind, self.predict(theta, phi, support.x), support.y)

        def gate(name: str, output: Tensor, c: Tensor, before: Tensor) -> Tensor:
            inputs = torch.cat([output, c[:, None], before[:, None]], dim=1)  # [W, hidden + 2]
            return torch.sigmoid(inputs @ theta[name]["weight"] + theta[name]["bias"])

        phi = select(theta, "backbone", "head")
        c = to_vector(phi)
        f = i = torch.zeros_like(c)
        state = self.reader.start(c[:, None])
        for _ in range(self.inner_steps):
            with torch.no_grad() if self.first_order else nullcontext():
                gradient, value = to_vector(gradient_of(loss, phi)), loss(phi)
            x = torch.cat([log_and_sign(value, P).expand(len(c), 2), log_and_sign(gradient, P)], dim=1)
            state = step_cell(self.reader, theta["reader"], x, state)
            f, i = gate("forget", state[0], c, f), gate("enter", state[0], c, i)
            c = f * c - i * gradient
            phi = from_vector(c, phi)
            yield phi, from_vector(f, phi), from_vector(i, phi)

    def adapt(self, theta: Theta, support: Examples) -> Theta:
        return last(self.trajectory(theta, support))

    def predict(self, theta: Theta, phi: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], or values [n, *output]."""
        features = forward(self.backbone, (phi["backbone"], theta["norm"]), x)
        return forward(self.head, phi["head"], features)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss of the last cell state (Algorithm 1)."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The headline metric after the last inner step, and after each from 0 on."""
        states = self.trajectory(theta, episode.support)
        return metrics_by_step(self, self.spec, theta, episode, states)

    def explain(self, theta: Theta, episode: Episode) -> dict[str, Chart]:
        """Chart the mean gates of each layer and step: f, the share that is kept of its weights, and i, their rates."""
        _, f, i = zip(*self.updates(theta, episode.support))
        gates = {"kept": f, "rates": i}
        return {
            name: chart_by_step(stack_steps([average_layers(gate) for gate in each])) for name, each in gates.items()
        }


def average_layers(gate: Theta) -> Params:
    """The mean of each layer, [] each."""
    return {name: p.mean() for name, p in flatten(gate).items()}


def to_vector(phi: Theta) -> Tensor:
    """Join all weights: [W]."""
    return torch.cat([p.flatten() for p in flatten(phi).values()])


def from_vector(c: Tensor, like: Theta) -> Theta:
    """Split a vector [W] into the shapes of `like`: the inverse of `to_vector`."""
    parts = iter(c.split([p.numel() for p in flatten(like).values()]))
    return {comp: {name: next(parts).view_as(p) for name, p in params.items()} for comp, params in like.items()}
