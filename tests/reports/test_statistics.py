"""Intervals and comparisons: against hand computations, SciPy's own tests and simulated coverage."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from metarun.core.statistics import Scores
from metarun.reports.statistics import ALL_PAIRS, compare, correct_by_holm, mean_ranks, summarise


def test_the_two_spreads_are_kept_apart_by_hand() -> None:
    """Two seeds on three tasks. Seed means 2 and 4: mean 3, standard deviation sqrt 2, over seeds 12.706 sqrt(2) /
    sqrt(2). Task means 1.5, 3, 4.5: standard deviation 1.5, over tasks 1.96 * 1.5 / sqrt(3)."""
    found = summarise([np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])])
    assert (found.mean, found.seeds, found.tasks) == (3.0, 2, 3)
    assert found.over_tasks == pytest.approx(1.96 * 1.5 / math.sqrt(3))
    assert found.over_seeds == pytest.approx(12.7062, abs=1e-4)
    assert summarise([np.array([1.0, 2.0])]).over_seeds is None


def test_the_interval_over_seeds_is_scipys() -> None:
    scores = np.random.default_rng(3).normal(0.9, 0.1, size=(4, 50))
    found = summarise(list(scores))
    low, high = stats.t.interval(0.95, 3, loc=scores.mean(), scale=stats.sem(scores.mean(1)))
    assert found.over_seeds == pytest.approx((high - low) / 2)
    assert found.mean == pytest.approx((high + low) / 2)


@pytest.mark.parametrize(
    ("draw", "mean"),
    [
        (lambda rng: rng.binomial(5, 0.9, size=200) / 5, 0.9),  # accuracies of tasks with five queries
        (lambda rng: rng.binomial(5, 0.98, size=600) / 5, 0.98),  # nearly all of them right
        (lambda rng: rng.lognormal(-2.0, 1.0, size=600), math.exp(-1.5)),  # squared errors, some of them large
    ],
)
def test_the_interval_over_tasks_covers_the_mean_95_times_in_100(
    draw: Callable[[np.random.Generator], Scores], mean: float
) -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        found = summarise([draw(rng)])
        hits += found.over_tasks is not None and abs(found.mean - mean) <= found.over_tasks
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_the_interval_over_seeds_covers_it_too() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        found = summarise([np.full(2, mean) for mean in rng.normal(0.9, 0.01, size=3)])
        hits += found.over_seeds is not None and abs(found.mean - 0.9) <= found.over_seeds
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_methods_are_compared_task_by_task() -> None:
    rng = np.random.default_rng(1)
    hard = rng.normal(size=300)
    scores = {"a": hard + 0.1 + 0.1 * rng.normal(size=300), "b": hard, "c": hard.copy()}
    found = {(entry.first, entry.second): entry for entry in compare(scores)}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    entry, change = found["a", "b"], scores["a"] - scores["b"]
    assert entry.difference == pytest.approx(change.mean())
    low, high = stats.t.interval(0.95, 299, loc=change.mean(), scale=stats.sem(change))
    assert entry.ci95 == pytest.approx((high - low) / 2, rel=0.01)  # 1.96 for 1.968
    assert entry.p == pytest.approx(stats.wilcoxon(scores["a"], scores["b"]).pvalue)
    assert entry.p_mean == pytest.approx(stats.ttest_rel(scores["a"], scores["b"]).pvalue)
    same = found["b", "c"]
    assert (same.difference, same.p_mean, same.p, same.corrected) == (0.0, 1.0, 1.0, 1.0)
    assert found["a", "b"].corrected == pytest.approx(3 * entry.p)


def test_skewed_differences_of_mean_zero_are_rejected_by_their_ranks_alone() -> None:
    """Of 400 differences 300 are 1 and 100 are -3."""
    change = np.array([1.0] * 300 + [-3.0] * 100)
    (entry,) = compare({"a": change, "b": np.zeros(400)})
    assert entry.difference == 0
    assert entry.p_mean == pytest.approx(1)
    assert entry.p < 0.05


def test_wilcoxons_p_by_hand() -> None:
    """Of 2^5 ways to sign five ranks two are as far out as five gains. With ties, Pratt's normal approximation: of the
    ranks of all |differences| those of zeros are dropped, the variance is sum(rank^2) / 4 of the others."""
    (entry,) = compare({"a": np.array([0.1, 0.2, 0.3, 0.4, 0.5]), "b": np.zeros(5)})
    assert entry.p == pytest.approx(2 / 2**5)
    change = np.array([0.0] * 60 + [0.2] * 25 + [-0.2] * 12 + [0.4] * 3)
    near, far = (61 + 97) / 2, (98 + 100) / 2
    gains, expected = 25 * near + 3 * far, (37 * near + 3 * far) / 2
    z = (gains - expected) / math.sqrt((37 * near**2 + 3 * far**2) / 4)
    (entry,) = compare({"a": change, "b": np.zeros(100)})
    assert entry.p == pytest.approx(2 * stats.norm.sf(z))


def test_comparisons_of_equal_methods_err_as_often_as_they_say() -> None:
    """Three methods, alike, on tasks of which most end in ties: the paired interval misses 0 five times in 100, p is
    below 0.05 as often (not less: it would see too little), and corrected below it, for any pair, no more often."""
    rng, tables = np.random.default_rng(0), 500
    misses = rejected = any_rejected = 0
    for _ in range(tables):
        easy = rng.binomial(5, 0.96, size=300)
        noisy = {name: easy - rng.binomial(1, 0.1, size=300) for name in "abc"}
        found = compare({name: right / 5 for name, right in noisy.items()})
        misses += abs(found[0].difference) > found[0].ci95
        rejected += found[0].p < 0.05
        any_rejected += any(entry.corrected < 0.05 for entry in found)
    assert misses / tables == pytest.approx(0.05, abs=0.03)
    assert rejected / tables == pytest.approx(0.05, abs=0.03)
    assert any_rejected / tables < 0.05 + 0.02


def test_what_is_equal_but_for_rounding_is_a_tie() -> None:
    one, other = (0.1 + 0.2) + 0.3, 0.1 + (0.2 + 0.3)
    assert one != other
    (entry,) = compare({"a": np.array([one, 0.5]), "b": np.array([other, 0.5])})
    assert (entry.difference, entry.p) == (0.0, 1.0)


def test_of_many_methods_the_first_is_compared_with_each() -> None:
    scores = {str(number): np.arange(20.0) * number for number in range(ALL_PAIRS + 1)}
    assert [(entry.first, entry.second) for entry in compare(scores)] == [
        ("0", str(n)) for n in range(1, ALL_PAIRS + 1)
    ]
    del scores["0"]
    assert len(compare(scores)) == ALL_PAIRS * (ALL_PAIRS - 1) / 2


def test_holm_by_hand() -> None:
    """0.01 * 4, 0.02 * 3, 0.03 * 2 is raised to 0.06, 0.6 * 1; and never more than 1."""
    assert correct_by_holm([0.02, 0.6, 0.01, 0.03]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    assert correct_by_holm([0.7, 0.8]) == [1.0, 1.0]
    assert correct_by_holm([]) == []


def test_mean_ranks_share_ties() -> None:
    scores = {"a": np.array([0.9, 0.5, 0.7]), "b": np.array([0.8, 0.5, 0.9]), "c": np.array([0.1, 0.5, 0.8])}
    assert mean_ranks(scores) == pytest.approx({"a": (1 + 2 + 3) / 3, "b": (2 + 2 + 1) / 3, "c": (3 + 2 + 2) / 3})


def test_mean_ranks_are_those_of_friedmans_test() -> None:
    """Without ties: chi^2 = 12 n / (k (k + 1)) * sum over methods of (mean rank - (k + 1) / 2)^2."""
    table = np.random.default_rng(2).normal(size=(4, 30))
    found = mean_ranks(dict(zip("abcd", table)))
    chi2 = 12 * 30 / (4 * 5) * sum((rank - 2.5) ** 2 for rank in found.values())
    assert chi2 == pytest.approx(stats.friedmanchisquare(*table).statistic)
