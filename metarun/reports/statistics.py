"""Means with intervals, and comparisons of methods on the same test tasks."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from metarun.core.statistics import Scores, over_tasks, student_quantile

ALL_PAIRS = 8  # up to so many methods, every pair is compared


@dataclass(frozen=True)
class Summary:
    """One setting over its seeds. The two intervals answer different questions and are never added."""

    mean: float  # over seeds, of each seed's mean over tasks
    over_tasks: float | None  # half a 95 % interval over the test tasks, of the mean over seeds for each task
    over_seeds: float | None  # half a 95 % interval over training seeds, by Student's t; None for a single seed
    seeds: int
    tasks: int


def summarise(scores: Sequence[Scores]) -> Summary:
    """Summarise the scores of each seed, [tasks], on the same tasks."""
    table = np.stack(scores)  # [seeds, tasks]
    per_task, per_seed = table.mean(0), table.mean(1)
    seeds, tasks = table.shape
    over_seeds = None
    if seeds > 1:
        over_seeds = student_quantile(seeds - 1) * float(per_seed.std(ddof=1)) / math.sqrt(seeds)
    half = over_tasks(per_task)
    return Summary(float(table.mean()), None if half is None else float(half), over_seeds, seeds, tasks)


def wilson_interval(part: int, whole: int) -> tuple[float, float]:
    """A 95 % interval for the probability of what was seen `part` times of `whole`, which is at least 1.

    Wilson 1927: all probabilities from which the seen share is within 1.96 standard deviations. Unlike the usual
    formula it also covers if all or none was seen.
    """
    share, square = part / whole, 1.96**2
    centre = share + square / (2 * whole)
    half = 1.96 * math.sqrt(share * (1 - share) / whole + square / (4 * whole**2))
    return (centre - half) / (1 + square / whole), (centre + half) / (1 + square / whole)


@dataclass(frozen=True)
class Comparison:
    """The first method minus the second, on the tasks that both were tested on."""

    first: str
    second: str
    difference: float
    ci95: float  # of the difference, paired: 1.96 std / sqrt(tasks)
    p_mean: float  # the paired t-test of equal means; 1 if no task differs
    p: float  # Wilcoxon's signed-rank test of no difference, ties as in Pratt 1959; 1 if no task differs
    corrected: float  # p by Holm's method, over all comparisons of the table


def compare(scores: Mapping[str, Scores]) -> list[Comparison]:
    """Compare every pair of methods; of more than ALL_PAIRS methods, the first with each other one.

    scores: name -> [tasks], all on the same tasks.
    """
    from scipy.stats import ttest_1samp, wilcoxon

    names, found = list(scores), []
    pairs = combinations(names, 2) if len(names) <= ALL_PAIRS else ((names[0], other) for other in names[1:])
    for first, second in pairs:
        change = (scores[first] - scores[second]).round(9)  # rounding errors are ties
        # Most tasks may be ties. To share their ranks among the signs, as "zsplit" does, would hide differences.
        p = float(wilcoxon(change, zero_method="pratt").pvalue) if np.any(change) else 1.0
        p_mean = float(ttest_1samp(change, 0.0).pvalue) if np.ptp(change) else float(not np.any(change))
        half = over_tasks(change)
        assert half is not None  # more than one task
        found.append((first, second, float(change.mean()), float(half), p_mean, p))
    corrected = correct_by_holm([entry[-1] for entry in found])
    return [Comparison(*entry, q) for entry, q in zip(found, corrected)]


def correct_by_holm(p: Sequence[float]) -> list[float]:
    """Holm 1979: the smallest p times their number, the next times one less, and so on; never falling, at most 1."""
    corrected = [1.0] * len(p)
    largest = 0.0
    for place, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        largest = max(largest, (len(p) - place) * p[i])
        corrected[i] = min(1.0, largest)
    return corrected


def mean_ranks(scores: Mapping[str, Scores]) -> dict[str, float]:
    """The mean over tasks of each method's rank. The highest score has rank 1; equal scores share their mean rank."""
    from scipy.stats import rankdata

    table = np.stack(list(scores.values()))  # [methods, tasks]
    return dict(zip(scores, rankdata(-table, axis=0).mean(1).tolist()))
