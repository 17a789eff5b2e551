"""Wrong labels in the support, after Liang et al. 2022, "Few-Shot Learning with Noisy Labels" (TraNFS),
https://arxiv.org/abs/2204.05494.

As there, every class keeps its number of shots, of which some are in truth of other classes: here examples of the same
support change places. The wrong share is that of the whole support, spread over the classes as evenly as it goes; at 1
shot and 40 % two of five examples are exchanged. One example alone cannot be, so that a second one joins it.
"""

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from metarun.config.registry import declaration, register
from metarun.config.schema import Fraction
from metarun.config.traits import ProbeTraits
from metarun.core.types import Episode, Examples, TaskSource
from metarun.probes.draw import draw_lines
from metarun.probes.probe import Figures, Finding, Subject, compare, estimate, mean_of, require


@register("probe", "noise", ProbeTraits(kinds=("classification",)))
@dataclass(frozen=True)
class Noise:
    """Accuracy where a share of the support's labels is wrong: symmetric, paired, or pictures of no class at all."""

    kinds: list[Literal["symmetric", "paired", "outlier"]]
    rates: list[Fraction]

    def run(self, subject: Subject) -> Finding:
        tester, name = subject.build_tester(), subject.row.algo["name"]
        mixed = declaration("algo", name).traits.order == "mixed"
        require(not mixed, f"algo={name} reads support and queries in one order: its support has no fixed shots")
        require(
            tester.row.split == "test" or "outlier" not in self.kinds,
            f"eval.split is {tester.row.split}: outliers are of validation classes, so test on split test",
        )
        strangers = subject.build_tester(split="val").source
        require(bool(self.kinds and self.rates), "noise.kinds or noise.rates is empty: give some")
        clean = subject.score_changed(tester, partial(change_labels, 0.0, "symmetric", strangers))
        table: list[Figures] = []
        found: dict[tuple[str, float], Tensor] = {}
        for kind in self.kinds:
            for rate in self.rates:
                scores = subject.score_changed(tester, partial(change_labels, rate, kind, strangers))
                found[kind, rate] = scores
                table.append(
                    {
                        "noise": kind,
                        "rate": rate,
                        subject.headline: estimate(scores),
                        "lost": compare(clean, scores),
                    }
                )
        noisy = {key: scores for key, scores in found.items() if key[1] > 0}
        return Finding(
            table=table,
            score=mean_of(noisy or found),
            scored=f"mean {subject.headline} over kinds and rates of noise",
            draw=partial(draw_lines, table, "noise", "rate", subject.headline),
        )


def change_labels(rate: float, kind: str, strangers: TaskSource, tasks: Episode, generator: torch.Generator) -> Episode:
    """Make round(rate * n) of the n support examples of each task wrong, more at a higher rate but none of another."""
    (x, y), query = tasks
    place, turn = find_places(y), torch.rand(y.shape, generator=generator).to(y.device)
    rank = (place + turn).argsort(1).argsort(1)  # first one example of each class, then another one of each, ...
    ways, wrong = len(y[0].unique()), round(rate * y.shape[1])
    if kind == "outlier":
        others = strangers.sample(len(y), generator).support.x
        mask = (rank < wrong).view(*rank.shape, *[1] * (x.dim() - 2))
        return Episode(Examples(torch.where(mask, others, x), y), query)
    wrong += wrong % ways == 1
    labels = y.clone()
    for task in range(len(y)):
        for shot in range(int(place.max()) + 1):
            circle = ((rank[task] < wrong) & (place[task] == shot)).nonzero()[:, 0]
            circle = circle[(y if kind == "paired" else turn)[task, circle].argsort()]
            labels[task, circle] = y[task, circle.roll(-1)]
    return Episode(Examples(x, labels), query)


def find_places(y: Tensor) -> Tensor:
    """[T, n]: how many examples of its class come before each."""
    return (y[:, :, None] == y[:, None]).tril(-1).sum(-1)
