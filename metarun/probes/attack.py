"""Accuracy on adversarial queries, as Goldblum et al. 2020, https://arxiv.org/abs/1910.00982, look at few-shot models.

The attack goes through the adapted predictor, whose support stays as it is. Pictures are values in 0..1, to which they
are cut before they are normalised. Where queries depend on each other, those of a task are attacked jointly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count, Positive
from metarun.config.traits import ProbeTraits
from metarun.core.objectives import accuracy, one_hot, predict_queries
from metarun.core.types import Episode, FewShotAlgorithm, Metrics, Theta
from metarun.datasets.preprocessing import Pictures, from_network
from metarun.engine.attack import ascend, build_predictor, draw_start
from metarun.probes.draw import draw_lines
from metarun.probes.probe import Figures, Finding, Subject, compare, estimate


@register("probe", "attack", ProbeTraits(kinds=("classification",), pictures=True))
@dataclass(frozen=True)
class Attack:
    """Accuracy on queries that were changed to be mistaken, by no more than `radius` in every value."""

    radius: Positive  # largest change of a value in 0..1
    step: Positive  # of PGD
    steps: Count
    loss: Literal["cross-entropy", "margin"]  # that is ascended

    def run(self, subject: Subject) -> Finding:
        form, tester = subject.pictures, subject.build_tester()
        assert form is not None
        scores = subject.measure(partial(self.attack_task, form), tester, execution="vmap").per_task
        table: list[Figures] = [
            {"attack": name, "accuracy": estimate(found), "lost": compare(scores["none"], found)}
            for name, found in scores.items()
        ]
        together = "queries of a task depend on each other here, and are attacked jointly: algo.norm=per_query does not"
        return Finding(
            table=table,
            score=table[-1]["accuracy"],
            scored=f"accuracy under {table[-1]['attack']}",
            draw=partial(draw_lines, table, None, "attack", "accuracy"),
            notes=[together] if subject.is_transductive(tester.row) else [],
        )

    def attack_task(self, form: Pictures, algo: FewShotAlgorithm, theta: Theta, episode: Episode) -> Metrics:
        """The accuracy on a task's queries as they are, and under each attack."""
        pixels, y = from_network(form, episode.query.x), episode.query.y
        predict = build_predictor(form, algo, theta, episode, predict_queries)

        def loss(pixels: Tensor) -> Tensor:
            return LOSSES[self.loss](predict(pixels), y)

        start = draw_start(pixels, self.radius)
        attacked = {
            "none": pixels,
            "FGSM": ascend(loss, pixels, torch.zeros_like(pixels), self.radius, self.radius, 1),
            f"PGD-{self.steps}": ascend(loss, pixels, start, self.radius, self.step, self.steps),
        }
        return {name: accuracy(predict(changed), y) for name, changed in attacked.items()}


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="sum")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """By how much the best other class exceeds the right one: it has a slope where a softmax has none left."""
    right = one_hot(y, logits.shape[-1])
    others = logits.masked_fill(right, -torch.inf).amax(-1)
    return (others - logits.gather(-1, y[:, None])[:, 0]).sum()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": cross_entropy, "margin": margin}
