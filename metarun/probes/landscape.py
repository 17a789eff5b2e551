"""The loss on the line from theta through phi, the weights after adaptation, and beyond, as Goodfellow et al. 2015,
https://arxiv.org/abs/1412.6544, look at training; and how alike the meta-gradients of tasks are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
from metarun.probes.probe import Figures, Finding, Subject, estimate
from metarun.probes.reuse import check_states

LOW, HIGH = -0.5, 2.0  # ends of the line, where 0 is theta and 1 is phi


@register("probe", "landscape", ProbeTraits(kinds=("classification", "regression"), ragged=True))
@dataclass(frozen=True)
class Landscape:
    """Loss along the way of adaptation, and how long and how alike the meta-gradients of tasks are."""

    points: Count
    gradients: Count

    def run(self, subject: Subject) -> Finding:
        tester = subject.build_tester()
        algo, theta = subject.build_algorithm(tester), subject.theta
        tasks = unstack(subject.draw_tasks(self.gradients, tester))
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
        return Finding(
            table=table,
            draw=partial(draw, table, cosines),
            notes=[
                "position 0 is theta, 1 the adapted weights; figures are losses",
                f"meta-gradients of {len(tasks)} tasks: norm {norms.mean():.4g} ± {norms.std():.4g} between tasks, "
                f"cosine of two {mean_of_pairs(cosines):.3f}",
            ],
        )


def follow_line(
    kind: Kind, positions: Sequence[float], algo: FewShotAlgorithm, theta: Theta, episode: Episode
) -> Metrics:
    """The losses of support and query at theta + position * (phi - theta): [P] each."""
    phi = adapt_to(algo, theta, episode)
    losses: dict[str, list[Tensor]] = {"support": [], "query": []}
    for position in positions:
        state = {
            part: {name: torch.lerp(theta[part][name], p, position) for name, p in params.items()}
            for part, params in phi.items()
        }
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


def draw(table: list[Figures], cosines: Tensor, figure: Any) -> None:
    """Losses along the line, and the cosines."""
    figure.set_size_inches(10, 4)
    left, right = figure.subplots(1, 2)
    for part in ("support", "query"):
        draw_on(left, table, None, "position", part)
    for position in (0, 1):
        left.axvline(position, color="grey", linestyle="--", linewidth=1)
    left.set(xlabel="position: 0 theta, 1 adapted", ylabel="loss", yscale="log")
    left.legend(left.containers, ["support", "query"])
    image = right.imshow(cosines.cpu(), vmin=-1, vmax=1, cmap="RdBu")
    right.set(title="cosine of meta-gradients", xlabel="task", ylabel="task")
    figure.colorbar(image)
