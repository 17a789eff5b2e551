"""Where a method looks when it predicts: its attention over the support, or the reads of its memory, step by step.

A method shows that by a function `attend`, see `metarun.core.types.Attentive`.
"""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.traits import ProbeTraits
from metarun.core.batch import unstack
from metarun.core.types import Attention, Attentive, Episode, FewShotAlgorithm, Metrics, Theta
from metarun.probes.probe import Figures, Finding, Subject, estimate, require

COLUMNS = 3  # of heads, in the picture
TICKS = 25  # labels on an axis


@register("probe", "attention", ProbeTraits(kinds=("classification",)))
@dataclass(frozen=True)
class Look:
    """How much attention is on the own class, how wide it is, and how alike it is within a class; one task drawn."""

    def run(self, subject: Subject) -> Finding:
        tester = subject.build_tester()
        algo = subject.build_algorithm(tester)
        attends = isinstance(algo, Attentive)
        require(attends, f"algo={tester.row.algo['name']} has no attention and no memory: there is nothing to draw")
        assert isinstance(algo, Attentive)
        with torch.no_grad():
            shown = algo.attend(subject.theta, unstack(subject.draw_tasks(1, tester))[0])
        found = subject.measure(look, tester).per_task
        table: list[Figures] = [
            {"head": head + 1, **{name: estimate(values[:, head]) for name, values in found.items()}}
            for head in range(shown.weights.shape[1])
        ]
        where = "rows of the memory" if shown.seen is None else "support examples"
        return Finding(
            table=table,
            draw=partial(draw, shown, where),
            notes=[f"looked at: how many {where} share the attention; alike: the overlap of two rows of the picture"],
        )


def look(algo: FewShotAlgorithm, theta: Theta, episode: Episode) -> Metrics:
    """Measure the attention of a task: see `measure_attention`."""
    assert isinstance(algo, Attentive)
    return measure_attention(algo.attend(theta, episode))


def measure_attention(attention: Attention) -> Metrics:
    """The weight on the own class, where columns have classes; the number of columns that share it, exp(entropy); and
    the overlap sum_i min(a_i, b_i) of two rows of one class, and of different ones: [K] each.
    """
    weights, y, seen = attention
    found: Metrics = {}
    if seen is not None:
        found["own class"] = (weights * (seen == y[:, None])[:, None]).sum(-1).mean(0)
    found["looked at"] = torch.special.entr(weights).sum(-1).exp().mean(0)
    overlap = torch.stack([torch.minimum(weights, row).sum(-1) for row in weights])  # [rows, rows, K]
    same = (y == y[:, None]).to(weights.dtype)
    pairs = {"alike, one class": same - torch.eye(len(y), device=y.device), "alike, others": 1 - same}
    for name, chosen in pairs.items():
        found[name] = (overlap * chosen[:, :, None]).sum((0, 1)) / chosen.sum().clamp(min=1)
    return found


def draw(attention: Attention, where: str, figure: Any) -> None:
    """A map for each head: support and queries class by class, or the steps of a sequence in their order."""
    weights, y, seen = attention
    rows = torch.arange(len(y)) if seen is None else y.cpu().argsort(stable=True)
    columns = torch.arange(weights.shape[-1]) if seen is None else seen.cpu().argsort(stable=True)
    heads = weights.shape[1]
    across = min(COLUMNS, heads)
    down = -(-heads // across)
    figure.set_size_inches(4.2 * across + 0.6, 4 * down)
    grid = figure.subplots(down, across, squeeze=False)
    for head, axis in enumerate(grid.flat):
        if head >= heads:
            axis.set_axis_off()
            continue
        values = weights[:, head].cpu()[rows][:, columns]
        figure.colorbar(axis.imshow(values, aspect="auto", cmap="viridis", vmin=0), ax=axis)
        label(axis.set_yticks, axis.axhline, y.cpu()[rows])
        if seen is not None:
            label(axis.set_xticks, axis.axvline, seen.cpu()[columns])
        rows_are = "step, by its class" if seen is None else "query, by its class"
        axis.set(title=f"head {head + 1}", xlabel=where + ("" if seen is None else ", by class"), ylabel=rows_are)


def label(set_ticks: Any, draw_line: Any, classes: Tensor) -> None:
    """Name each class in the middle of its rows or columns, and draw lines between them, if there is room for these; a
    query among what it looks at is "itself".
    """
    edges = [0, *((classes.diff() != 0).nonzero()[:, 0] + 1).tolist(), len(classes)]
    blocks = list(pairwise(edges))
    shown = blocks[:: -(-len(blocks) // TICKS)]
    names = ["itself" if classes[start] < 0 else str(int(classes[start])) for start, _ in shown]
    set_ticks([(start + end - 1) / 2 for start, end in shown], names, fontsize=8)
    for edge in edges[1:-1] if len(shown) == len(blocks) < len(classes) / 2 else ():
        draw_line(edge - 0.5, color="white", linewidth=0.5)
