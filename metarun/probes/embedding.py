"""What the network's features look like: principal components of some tasks, and the nearest support examples."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import ProbeTraits
from metarun.core.batch import unstack
from metarun.core.inner import forward
from metarun.core.objectives import adapt_to, class_means
from metarun.core.types import Backbone, Episode, Theta
from metarun.probes.probe import Figures, Finding, Subject, require

NEAREST = 3  # support pictures beside a query
QUERIES = 6  # on the sheet


@register("probe", "embedding", ProbeTraits(kinds=("classification",)))
@dataclass(frozen=True)
class Embedding:
    """Support, queries and class means of some tasks in the network's features, before adaptation and after."""

    tasks: Count

    def run(self, subject: Subject) -> Finding:
        tester = subject.build_tester()
        algo, theta = subject.build_algorithm(tester), subject.theta
        backbone: Any = getattr(algo, "backbone", None)
        embeds = "backbone" in theta and backbone is not None
        require(embeds, f"algo={tester.row.algo['name']} has no backbone: there are no features")
        tasks = unstack(subject.draw_tasks(self.tasks, tester))
        table, views = [], []
        for number, task in enumerate(tasks):
            with torch.no_grad():
                phi = adapt_to(algo, theta, task)
                states = {"before": theta}
                if isinstance(phi, dict) and "backbone" in phi:
                    states["after"] = {**theta, **phi}
                for when, state in states.items():
                    z = embed(backbone, state, task)
                    views.append((f"task {number + 1}, {when} adaptation", project(z), task))
                    table.append({"task": number + 1, "adaptation": when, **measure_spread(z, task)})
        nearest = find_nearest(embed(backbone, theta, tasks[0]), tasks[0]) if subject.pictures else None
        return Finding(table=table, draw=partial(draw, views, nearest))


def embed(backbone: Backbone, theta: Theta, task: Episode) -> tuple[Tensor, Tensor]:
    """The features of support and queries: [n, D] and [q, D]."""
    return tuple(forward(backbone, (theta["backbone"], theta.get("norm", {})), part.x) for part in task)  # type: ignore[return-value]


def project(z: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The first two principal components of both together: [n, 2] and [q, 2]."""
    both = torch.cat(z)
    both = both - both.mean(0)
    axes = torch.linalg.svd(both, full_matrices=False)[2][:2]
    largest = axes.gather(1, axes.abs().argmax(1, keepdim=True))  # a sign that does not depend on the machine
    first, second = (both @ (axes * largest.sign()).T).split([len(z[0]), len(z[1])])
    return first, second


def measure_spread(z: tuple[Tensor, Tensor], task: Episode) -> Figures:
    """The mean squared distance of queries to their own class's mean, as a share of that to all classes'; and how many
    are nearest to their own.
    """
    classes, places = torch.cat([part.y for part in task]).unique(return_inverse=True)
    support, query = places.split([len(part.y) for part in task])
    squares = torch.cdist(z[1], class_means(z[0], support, len(classes))).square()  # [q, N]
    own = squares.gather(1, query[:, None]).mean()
    nearest = (squares.argmin(1) == query).double().mean()
    return {"spread": float(own / squares.mean()), "nearest is own": float(nearest)}


def find_nearest(z: tuple[Tensor, Tensor], task: Episode) -> list[tuple[Tensor, list[tuple[Tensor, bool]]]]:
    """Some queries, each with its nearest support pictures and whether these are of its class."""
    order = torch.cdist(z[1], z[0]).argsort(1)[:, :NEAREST]
    step = max(1, len(order) // QUERIES)
    return [
        (task.query.x[i], [(task.support.x[j], bool(task.support.y[j] == task.query.y[i])) for j in order[i].tolist()])
        for i in range(0, len(order), step)[:QUERIES]
    ]


def draw(views: list[Any], nearest: Any, figure: Any) -> None:
    """A map for each task and state, and a sheet of nearest neighbours."""
    columns = min(4, len(views))
    lines = -(-len(views) // columns)
    figure.set_size_inches(3.6 * columns, 3.6 * lines + (3.2 if nearest else 0))
    upper, lower = figure.subfigures(2, 1, height_ratios=[3.6 * lines, 3.2]) if nearest else (figure, None)
    for axis, (title, (support, query), task) in zip(upper.subplots(lines, columns, squeeze=False).flat, views):
        for kind, z, y in (("support", support, task.support.y), ("query", query, task.query.y)):
            look = {"marker": "*", "s": 110, "edgecolors": "black"} if kind == "support" else {"s": 14, "alpha": 0.7}
            axis.scatter(*z.cpu().T, c=y.cpu(), cmap="tab10", vmin=0, vmax=9, label=kind, **look)
        classes, places = task.support.y.unique(return_inverse=True)
        means = class_means(support, places, len(classes))
        axis.scatter(*means.cpu().T, marker="x", color="black", s=40, label="class mean")
        axis.set(xticks=[], yticks=[])
        axis.set_title(title, fontsize=9)
    upper.axes[0].legend(fontsize="x-small")
    if lower is not None:
        lower.suptitle("queries; below each its nearest of the support: green of its class, red of another", fontsize=9)
        grid = lower.subplots(1 + NEAREST, len(nearest), squeeze=False)
        for column, (query, found) in zip(grid.T, nearest):
            for axis, (x, right) in zip(column, [(query, None), *found]):
                picture = x.cpu().permute(1, 2, 0).squeeze(-1)
                axis.imshow((picture - picture.min()) / (picture.max() - picture.min()).clamp(min=1e-8), cmap="gray")
                axis.set(xticks=[], yticks=[])
                for side in axis.spines.values():
                    side.set(color={None: "black", True: "green", False: "red"}[right], linewidth=2)
