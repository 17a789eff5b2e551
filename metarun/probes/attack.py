"""Adversarial queries: Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572 (FGSM), and Madry et al. 2018,
https://arxiv.org/abs/1706.06083 (PGD), on few-shot models as Goldblum et al. 2020, https://arxiv.org/abs/1910.00982.

The attack goes through the adapted predictor, whose support stays as it is. Pictures are values in 0..1, to which they
are cut before they are normalised. Where queries depend on each other, those of a task are attacked jointly.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from metarun.config.registry import register, traits_of
from metarun.config.schema import Count, Positive
from metarun.config.traits import ProbeTraits
from metarun.core.objectives import Transductive, accuracy, adapt_to, one_hot, predict_queries
from metarun.core.seeding import hash_uniform
from metarun.core.types import Episode, Examples, FewShotAlgorithm, Metrics, Theta
from metarun.datasets.preprocessing import Pictures
from metarun.probes.corruption import from_network, to_network
from metarun.probes.draw import draw_lines
from metarun.probes.probe import Figures, Finding, Subject, compare, estimate

Loss = Callable[[Tensor], Tensor]  # of pixels [n, C, S, S]


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
        (support, (_, y)), pixels = episode, from_network(form, episode.query.x)
        sees_queries = traits_of(algo).sees_queries and cast(Transductive, algo).transductive
        before = None if sees_queries else adapt_to(algo, theta, episode)

        def predict(pixels: Tensor) -> Tensor:
            task = Episode(support, Examples(to_network(form, pixels), y))
            return predict_queries(algo, theta, adapt_to(algo, theta, task) if sees_queries else before, task)

        def loss(pixels: Tensor) -> Tensor:
            return LOSSES[self.loss](predict(pixels), y)

        salt = (1000 * pixels).round().sum()  # of the task's own pixels, so that each task starts elsewhere
        start = self.radius * hash_uniform(pixels.numel(), salt).view_as(pixels)
        attacked = {
            "none": pixels,
            "FGSM": ascend(loss, pixels, torch.zeros_like(pixels), self.radius, self.radius, 1),
            f"PGD-{self.steps}": ascend(loss, pixels, start, self.radius, self.step, self.steps),
        }
        return {name: accuracy(predict(changed), y) for name, changed in attacked.items()}


def ascend(loss: Loss, pixels: Tensor, start: Tensor, radius: float, step: float, steps: int) -> Tensor:
    """Go up the loss by the sign of its gradient, no further than `radius` from the pixels and within 0..1."""
    low, high = (pixels - radius).clamp(min=0), (pixels + radius).clamp(max=1)
    x = (pixels + start).clamp(low, high)
    for _ in range(steps):
        x = (x + step * grad(loss)(x).sign()).clamp(low, high)
    return x


def cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(logits, y, reduction="sum")


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """By how much the best other class exceeds the right one: it has a slope where a softmax has none left."""
    right = one_hot(y, logits.shape[-1])
    others = logits.masked_fill(right, -torch.inf).amax(-1)
    return (others - logits.gather(-1, y[:, None])[:, 0]).sum()


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cross-entropy": cross_entropy, "margin": margin}
