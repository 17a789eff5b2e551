"""Charts of what a method has learned besides weights: losses and rates."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor
from torch.func import grad, vmap

from metarun.core import objectives
from metarun.core.types import Params, TaskSpec

Loss = Callable[[Tensor, Tensor], Tensor]  # predictions [n, outputs], y -> []
ERRORS, MARGINS, TARGETS = (-4.0, 4.0), (-4.0, 8.0), (-2.0, 0.0, 2.0)
POINTS = 121


class Chart(NamedTuple):
    """Lines over a common x."""

    across: str  # what x is
    x: Tensor  # [k]
    lines: Mapping[str, Tensor]  # name -> [k]


def chart_losses(spec: TaskSpec, losses: Mapping[str, Loss]) -> dict[str, Chart]:
    """Chart losses, and their slopes, beside the usual one.

    In regression x is the error of a single prediction, with a line for each of a few targets. In classification x is
    the margin of logits: there is an example of each class, whose own logit exceeds all others by x.
    """
    usual: Loss = partial(objectives.loss, spec.kind)
    if spec.kind == "classification":
        lines = {name: _at_margin(loss, spec.output_size) for name, loss in {**losses, "cross-entropy": usual}.items()}
        across, x = "logit margin", torch.linspace(*MARGINS, POINTS)
    else:
        lines = {
            f"{name}, y = {target:g}": _at_error(loss, target, spec.output_size)
            for name, loss in losses.items()
            for target in TARGETS
        } | {"mse": _at_error(usual, 0.0, spec.output_size)}  # the same for every target
        across, x = "error", torch.linspace(*ERRORS, POINTS)
    return {
        "loss": Chart(across, x, {name: vmap(line)(x) for name, line in lines.items()}),
        "slope": Chart(across, x, {name: vmap(grad(line))(x) for name, line in lines.items()}),
    }


def _at_margin(loss: Loss, ways: int) -> Callable[[Tensor], Tensor]:
    return lambda margin: loss(margin * torch.eye(ways), torch.arange(ways))


def _at_error(loss: Loss, target: float, outputs: int) -> Callable[[Tensor], Tensor]:
    y = torch.full((1, outputs), target)
    return lambda error: loss(y + error, y)


def chart_by_step(rates: Params) -> Chart:
    """Chart each layer's rates [J] over the inner steps."""
    steps = len(next(iter(rates.values())))
    return Chart("inner step", torch.arange(1.0, steps + 1), rates)


def chart_by_rank(rates: Params) -> Chart:
    """Chart the rates of each layer's weights in ascending order."""
    share = torch.linspace(0, 1, POINTS)
    lines = {name: rate.flatten().quantile(share) for name, rate in rates.items()}
    return Chart("share of the layer's weights", share, lines)


def average(charts: Sequence[Chart]) -> Chart:
    """The mean of charts that have the same lines and x."""
    lines = {name: torch.stack([chart.lines[name].detach() for chart in charts]).mean(0) for name in charts[0].lines}
    return charts[0]._replace(lines=lines)
