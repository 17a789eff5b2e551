"""Intervals and comparisons: against hand computations, SciPy's own tests and simulated coverage."""

import math

import numpy as np
import pytest
from scipy import stats

from metarun.reporting.statistics import compared, holm, ranks, summary


def test_the_two_spreads_are_kept_apart_by_hand():
    """Two seeds on three tasks. Seed means 2 and 4: mean 3, standard deviation sqrt 2, over seeds 12.706 sqrt(2) /
    sqrt(2). Task means 1.5, 3, 4.5: standard deviation 1.5, over tasks 1.96 * 1.5 / sqrt(3)."""
    found = summary([np.array([1.0, 2.0, 3.0]), np.array([2.0, 4.0, 6.0])])
    assert (found.mean, found.seeds, found.tasks) == (3.0, 2, 3)
    assert found.over_tasks == pytest.approx(1.96 * 1.5 / math.sqrt(3))
    assert found.over_seeds == pytest.approx(12.7062, abs=1e-4)
    assert summary([np.array([1.0, 2.0])]).over_seeds is None


def test_the_interval_over_tasks_covers_the_mean_95_times_in_100():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        found = summary([rng.binomial(5, 0.9, size=200) / 5])  # accuracies of tasks with five queries
        hits += abs(found.mean - 0.9) <= found.over_tasks
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_the_interval_over_seeds_covers_it_too():
    rng = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        found = summary([np.full(2, mean) for mean in rng.normal(0.9, 0.01, size=3)])
        hits += found.over_seeds is not None and abs(found.mean - 0.9) <= found.over_seeds
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_methods_are_compared_task_by_task():
    rng = np.random.default_rng(1)
    hard = rng.normal(size=300)
    scores = {"a": hard + 0.1 + 0.1 * rng.normal(size=300), "b": hard, "c": hard.copy()}
    found = {(entry.first, entry.second): entry for entry in compared(scores)}
    assert list(found) == [("a", "b"), ("a", "c"), ("b", "c")]
    entry, change = found["a", "b"], scores["a"] - scores["b"]
    assert entry.difference == pytest.approx(change.mean())
    low, high = stats.t.interval(0.95, 299, loc=change.mean(), scale=stats.sem(change))
    assert entry.ci95 == pytest.approx((high - low) / 2, rel=0.01)  # 1.96 for 1.968
    assert entry.p == stats.wilcoxon(scores["a"], scores["b"]).pvalue
    assert (found["b", "c"].difference, found["b", "c"].p, found["b", "c"].corrected) == (0.0, 1.0, 1.0)
    assert found["a", "b"].corrected == pytest.approx(3 * entry.p)


def test_holm_by_hand():
    """0.01 * 4, 0.02 * 3, 0.03 * 2 is raised to 0.06, 0.6 * 1; and never more than 1."""
    assert holm([0.02, 0.6, 0.01, 0.03]) == pytest.approx([0.06, 0.6, 0.04, 0.06])
    assert holm([0.7, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_mean_ranks_share_ties():
    scores = {"a": np.array([0.9, 0.5, 0.7]), "b": np.array([0.8, 0.5, 0.9]), "c": np.array([0.1, 0.5, 0.8])}
    assert ranks(scores) == pytest.approx({"a": (1 + 2 + 3) / 3, "b": (2 + 2 + 1) / 3, "c": (3 + 2 + 2) / 3})
