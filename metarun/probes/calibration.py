"""Whether probabilities mean what they say: Guo et al. 2017, https://arxiv.org/abs/1706.04599.

Predictions for all queries of all tasks count, as `metarun predict` makes them: each query by itself, before and after
the temperature that was fitted on validation tasks. The expected calibration error (ECE) is never 0 by chance alone, so
that it stands beside what a perfectly calibrated predictor of the same confidences would have.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import ProbeTraits
from metarun.core.statistics import Estimate
from metarun.core.types import Episode, FewShotAlgorithm, Metrics, Theta
from metarun.engine.calibration import collect_answers, fit_temperature
from metarun.engine.distributed import ALONE
from metarun.probes.probe import Figures, Finding, Subject, answer, estimate

SMALLEST = 1e-12  # probability that the likelihood counts
DRAWS = 1000  # of the intervals
Array = NDArray[np.float64]


@register("probe", "calibration", ProbeTraits(kinds=("classification",)))
@dataclass(frozen=True)
class Calibration:
    """Reliability diagram, calibration errors, likelihood and Brier score, before and after the temperature."""

    bins: Count

    def run(self, subject: Subject) -> Finding:
        row = subject.inductive
        scores = subject.measure(answer_queries, subject.build_tester(row)).per_task
        temperature = subject.temperature or self.fit(subject)
        table: list[Figures] = []
        bins: list[Array] = []
        for value in (1.0, *([temperature] if temperature else [])):
            probabilities = (scores["logits"].double() / value).softmax(-1)
            figures, counted = judge(probabilities, scores["y"], self.bins)
            table.append({"temperature": value, **figures})
            bins.append(counted)
        return Finding(
            table=table,
            score=table[-1]["ece"],
            scored="expected calibration error of what predict says",
            higher_is_better=False,
            draw=partial(draw, table, bins),
            notes=[] if temperature else ["no temperature could be fitted: these are the method's own probabilities"],
        )

    def fit(self, subject: Subject) -> float | None:
        """The temperature that the run would have, of one that keeps none."""
        row = replace(subject.inductive, tasks=subject.experiment.settings.eval.val_tasks)
        answers = collect_answers(subject.build_tester(row, "val"), [subject.model], subject.execution, ALONE)
        return answers and fit_temperature(answers)


def answer_queries(algo: FewShotAlgorithm, theta: Theta, episode: Episode) -> Metrics:
    return {"logits": answer(algo, theta, episode), "y": episode.query.y}


def judge(probabilities: Tensor, y: Tensor, bins: int) -> tuple[Figures, Array]:
    """The figures, and bins of all queries [bins, 3]: their number, and the sums of confidences and of right ones.

    probabilities: [T, n, N], y: [T, n].
    """
    confidence, label = (values.numpy() for values in probabilities.max(-1))
    right, target = (label == y.numpy()).astype(float), y[..., None]
    likelihood = probabilities.gather(-1, target)[..., 0].clamp(min=SMALLEST).log()
    brier = probabilities.square().sum(-1) - 2 * probabilities.gather(-1, target)[..., 0] + 1
    counted = count_bins(confidence, right, bins)  # [T, bins, 3]
    rng = np.random.default_rng(0)
    weights = rng.multinomial(len(y), np.full(len(y), 1 / len(y)), DRAWS)  # tasks drawn again
    again = [expected_error(np.tensordot(weight, counted, 1)) for weight in weights]
    perfect = [
        expected_error(count_bins(confidence, rng.random(confidence.shape) < confidence, bins).sum(0))
        for _ in range(DRAWS // 5)
    ]
    whole = counted.sum(0)
    low, high = np.quantile(perfect, [0.025, 0.975])
    figures = {
        "ece": Estimate(expected_error(whole), 1.96 * float(np.std(again))),
        "if calibrated": f"{low:.4f} to {high:.4f}",
        "mce": largest_error(whole),
        "nll": estimate(-likelihood.mean(-1)),
        "brier": estimate(brier.mean(-1)),
        "accuracy": estimate(right.mean(-1)),
    }
    return figures, whole


def count_bins(confidence: Array, right: Any, bins: int) -> Array:
    """[T, n] -> [T, bins, 3], bins of equal width from 0 to 1: number, sum of confidences, number of right ones."""
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    members = place[..., None] == np.arange(bins)  # [T, n, bins]
    parts = (members, members * confidence[..., None], members * np.asarray(right, float)[..., None])
    return np.stack([part.sum(1, dtype=float) for part in parts], -1)


def expected_error(bins: Array) -> float:
    """ECE: the mean over queries of their bin's distance between confidence and accuracy."""
    return float(np.abs(bins[:, 1] - bins[:, 2]).sum() / bins[:, 0].sum())


def largest_error(bins: Array) -> float:
    """MCE: the largest such distance of a bin."""
    there = bins[bins[:, 0] > 0]
    return float((np.abs(there[:, 1] - there[:, 2]) / there[:, 0]).max())


def draw(table: list[Figures], bins: list[Array], figure: Any) -> None:
    """A reliability diagram for each temperature, with the share of the queries in each bin below."""
    figure.set_size_inches(5 * len(bins), 5)
    axes = figure.subplots(2, len(bins), squeeze=False, height_ratios=[3, 1], sharex=True)
    for (upper, lower), row, counted in zip(axes.T, table, bins):
        width = 1 / len(counted)
        middle = (np.arange(len(counted)) + 0.5) * width
        there = counted[:, 0] > 0
        accuracy, confidence = (counted[there, i] / counted[there, 0] for i in (2, 1))
        upper.bar(middle[there], accuracy, 0.9 * width, label="accuracy")
        upper.plot(confidence, accuracy, "ko", markersize=3, label="mean confidence of the bin")
        upper.plot([0, 1], [0, 1], "k--", linewidth=1)
        upper.set(title=f"temperature {row['temperature']:.3g}: ECE {row['ece'].mean:.4f}", ylabel="accuracy")
        upper.legend(fontsize="small", loc="upper left")
        lower.bar(middle, counted[:, 0] / counted[:, 0].sum(), 0.9 * width, color="grey")
        lower.set(xlabel="confidence", ylabel="share of queries", xlim=(0, 1))
