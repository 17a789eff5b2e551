"""Queries in a mirror: an example of a probe in a package of its own."""

from dataclasses import dataclass
from functools import partial

import torch

from metarun.config.registry import register
from metarun.config.traits import ProbeTraits
from metarun.core.types import Episode, Examples
from metarun.probes.draw import draw_lines
from metarun.probes.probe import Finding, Subject, estimate


@register("probe", "mirror", ProbeTraits(kinds=("classification",), pictures=True))
@dataclass(frozen=True)
class Mirror:
    """Accuracy where queries are mirrored, and the support is not."""

    def run(self, subject: Subject) -> Finding:
        tester, name = subject.build_tester(), subject.headline
        clean = estimate(subject.score(tester).per_task[name])
        mirrored = estimate(subject.score_changed(tester, mirror))
        table = [{"queries": "as they are", name: clean}, {"queries": "mirrored", name: mirrored}]
        return Finding(table=table, score=mirrored, draw=partial(draw_lines, table, None, "queries", name))


def mirror(tasks: Episode, generator: torch.Generator) -> Episode:
    """x: [T, n, C, H, W]."""
    support, query = tasks
    return Episode(support, Examples(query.x.flip(-1), query.y))
