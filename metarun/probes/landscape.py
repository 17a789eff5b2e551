"""The loss on the line from theta through phi, the weights after adaptation, and beyond, as Goodfellow et al. 2015,
https://arxiv.org/abs/1412.6544, look at training; on the plane of the first two inner steps; and how alike the
meta-gradients of tasks are.

A point (s, t) of the plane is theta + s (phi_1 - theta) + t (phi_2 - phi_1), so that the three states have the same
places in every task, and the mean over tasks has a meaning. The angle of the two steps is told beside the picture.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.func import grad

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import Kind, ProbeTraits
from metarun.core.batch import unstack
from metarun.core.inner import flatten
from metarun.core.objectives import adapt_to, loss
from metarun.core.types import Episode, FewShotAlgorithm, Metrics, Theta
from metarun.probes.draw import draw_on
from metarun.probes.probe import Figures, Finding, Subject, estimate, require
from metarun.probes.reuse import check_states

LOW, HIGH = -0.5, 2.0  # ends of the line and sides of the plane; a step is from 0 to 1
COSINE = "cosine"


@register("probe", "landscape", ProbeTraits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class Landscape:
    """Loss along the way of adaptation, and how long and how alike the meta-gradients of tasks are."""

    points: Count
    tasks: Count

    def run(self, subject: Subject) -> Finding:
        require(self.points > 1, "landscape.points is 1: give at least 2, the ends of the line")
        tester = subject.build_tester()
        algo, theta = subject.build_algorithm(tester), subject.theta
        tasks = unstack(subject.draw_tasks(self.tasks, tester))
        with torch.no_grad():
            check_states(subject, theta, adapt_to(algo, theta, tasks[0]))
        positions = torch.linspace(LOW, HIGH, self.points).tolist()
        look = partial(follow_line, subject.spec.kind, positions)
        found = subject.measure(look, tester).per_task
        table: list[Figures] = [
            {"position": round(position, 4), **{part: estimate(losses[:, i]) for part, losses in found.items()}}
            for i, position in enumerate(positions)
        ]
        norms, cosines = compare_gradients(algo, theta, tasks)
        one, two = (
            subject.build_tester(replace(tester.row, tasks=self.tasks, algo={**tester.row.algo, "inner_steps": steps}))
            for steps in (1, 2)
        )
        look = partial(span_plane, subject.spec.kind, positions, subject.build_algorithm(two))
        plane = {name: values.mean(0) for name, values in subject.measure(look, one).per_task.items()}
        angle = plane.pop(COSINE)
        return Finding(
            table=table,
            draw=partial(draw, table, cosines, positions, plane),
            notes=[
                "position 0 is theta, 1 the adapted weights; figures are losses",
                f"meta-gradients of {len(tasks)} tasks: norm {norms.mean():.4g} ± {norms.std():.4g} between tasks, "
                f"cosine of two {mean_of_pairs(cosines):.3f}",
                f"the plane is a mean over these tasks; cosine of its two inner steps {angle:.3f}",
            ],
        )


def follow_line(
    kind: Kind, positions: Sequence[float], algo: FewShotAlgorithm, theta: Theta, episode: Episode
) -> Metrics:
    """The losses of support and query at theta + position * (phi - theta): [P] each."""
    phi = adapt_to(algo, theta, episode)
    states = (combine(phi, lambda p, start, s=s: torch.lerp(start, p, s), theta) for s in positions)
    return measure_losses(kind, algo, theta, states, episode)


def span_plane(
    kind: Kind,
    positions: Sequence[float],
    second: FewShotAlgorithm,
    first: FewShotAlgorithm,
    theta: Theta,
    episode: Episode,
) -> Metrics:
    """The losses of support and query on the plane of the steps from theta to phi_1, which `first` takes, and from
    there to phi_2, which `second` takes after it: [P, P] each, at s of the row and t of the column. And the cosine of
    the two steps.
    """
    one, two = (adapt_to(algo, theta, episode) for algo in (first, second))
    ways = [combine(one, torch.sub, theta), combine(two, torch.sub, one)]
    states = (
        combine(one, lambda _, p, u, v, s=s, t=t: p + s * u + t * v, theta, *ways) for s in positions for t in positions
    )
    losses = measure_losses(kind, first, theta, states, episode)
    u, v = (torch.cat([p.flatten() for p in flatten(way).values()]) for way in ways)
    found = {name: values.unflatten(0, (len(positions), -1)) for name, values in losses.items()}
    return found | {COSINE: torch.cosine_similarity(u, v, dim=0)}


def combine(state: Theta, function: Callable[..., Tensor], *others: Theta) -> Theta:
    """Apply a function to each weight of a state and those of the same name in others."""
    return {
        part: {name: function(p, *(other[part][name] for other in others)) for name, p in params.items()}
        for part, params in state.items()
    }


def measure_losses(
    kind: Kind, algo: FewShotAlgorithm, theta: Theta, states: Iterable[Theta], episode: Episode
) -> Metrics:
    """The losses of support and query at each of P adapted states: [P] each."""
    losses: dict[str, list[Tensor]] = {"support": [], "query": []}
    for state in states:
        for name, examples in zip(losses, episode):
            losses[name].append(loss(kind, algo.predict(theta, state, examples.x), examples.y))
    return {name: torch.stack(values) for name, values in losses.items()}


def compare_gradients(algo: FewShotAlgorithm, theta: Theta, tasks: Sequence[Episode]) -> tuple[Tensor, Tensor]:
    """The norms [T] of the meta-gradients of tasks, and the cosines [T, T] between them."""

    def gradient(task: Episode) -> Tensor:
        slopes: Theta = grad(lambda theta: algo.task_loss(theta, task)[0])(theta)
        return torch.cat([p.flatten() for p in flatten(slopes).values()])

    gradients = torch.stack([gradient(task) for task in tasks])
    norms = gradients.norm(dim=1)
    unit = gradients / norms[:, None].clamp(min=1e-30)
    return norms, unit @ unit.T


def mean_of_pairs(cosines: Tensor) -> float:
    """The mean off the diagonal."""
    number = len(cosines)
    return float((cosines.sum() - cosines.diagonal().sum()) / max(1, number * (number - 1)))


def draw(
    table: list[Figures], cosines: Tensor, positions: Sequence[float], plane: Mapping[str, Tensor], figure: Any
) -> None:
    """Losses along the line and on the plane, and the cosines."""
    from matplotlib.ticker import MaxNLocator

    figure.set_size_inches(10, 8)
    (left, right), below = figure.subplots(2, 2)
    for part in ("support", "query"):
        draw_on(left, table, None, "position", part)
    for position in (0, 1):
        left.axvline(position, color="grey", linestyle="--", linewidth=1)
    left.set(xlabel="position: 0 theta, 1 adapted", ylabel="loss", yscale="log")
    left.legend(left.containers, ["support", "query"])
    image = right.imshow(cosines.cpu(), vmin=-1, vmax=1, cmap="RdBu")
    right.set(title="cosine of meta-gradients", xlabel="task", ylabel="task")
    for side in (right.xaxis, right.yaxis):
        side.set_major_locator(MaxNLocator(integer=True))
    figure.colorbar(image)
    for axis, (name, losses) in zip(below, plane.items()):
        levels = axis.contourf(positions, positions, losses.T.clamp(min=1e-6).log10(), levels=16, cmap="viridis")
        axis.plot([0, 1, 1], [0, 0, 1], color="white", marker="o")
        for state, place in (("theta", (0, 0)), ("phi 1", (1, 0)), ("phi 2", (1, 1))):
            axis.annotate(state, place, xytext=(6, 4), textcoords="offset points", color="white")
        axis.set(title=f"{name}, log10 of the loss", xlabel="first inner step", ylabel="second inner step")
        figure.colorbar(levels)
