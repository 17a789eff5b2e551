"""What a method has learned besides weights, as curves that a person can read: losses and rates."""

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
    """Lines over the same places."""

    across: str
    x: Tensor  # [k]
    lines: Mapping[str, Tensor]  # name -> [k]


def of_losses(spec: TaskSpec, losses: Mapping[str, Loss]) -> dict[str, Chart]:
    """Losses, and their slopes, beside the usual one.

    In regression against the error of one prediction, for a few targets; in classification against the logit margin:
    an example of each class, whose own logit is that much above all others.
    """
    usual: Loss = partial(objectives.loss, spec.kind)
    if spec.kind == "classification":
        lines = {name: _by_margin(loss, spec.output_size) for name, loss in {**losses, "cross-entropy": usual}.items()}
        across, x = "logit margin", torch.linspace(*MARGINS, POINTS)
    else:
        lines = {
            f"{name}, y = {target:g}": _by_error(loss, target, spec.output_size)
            for name, loss in losses.items()
            for target in TARGETS
        } | {"mse": _by_error(usual, 0.0, spec.output_size)}  # the same for every target
        across, x = "error", torch.linspace(*ERRORS, POINTS)
    return {
        "loss": Chart(across, x, {name: vmap(line)(x) for name, line in lines.items()}),
        "slope": Chart(across, x, {name: vmap(grad(line))(x) for name, line in lines.items()}),
    }


def _by_margin(loss: Loss, ways: int) -> Callable[[Tensor], Tensor]:
    return lambda margin: loss(margin * torch.eye(ways), torch.arange(ways))


def _by_error(loss: Loss, target: float, outputs: int) -> Callable[[Tensor], Tensor]:
    y = torch.full((1, outputs), target)
    return lambda error: loss(y + error, y)


def by_step(rates: Params) -> Chart:
    """A line for each layer, of its rates [J] over the inner steps."""
    steps = len(next(iter(rates.values())))
    return Chart("inner step", torch.arange(1.0, steps + 1), rates)


def mean(charts: Sequence[Chart]) -> Chart:
    """Of the same lines over the same places."""
    lines = {name: torch.stack([chart.lines[name].detach() for chart in charts]).mean(0) for name in charts[0].lines}
    return charts[0]._replace(lines=lines)


def by_rank(rates: Params) -> Chart:
    """A line for each layer, of its weights' rates from the least to the greatest."""
    share = torch.linspace(0, 1, POINTS)
    return Chart(
        "share of the layer's weights", share, {name: rate.flatten().quantile(share) for name, rate in rates.items()}
    )
