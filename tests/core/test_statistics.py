"""Intervals: by hand, and against populations whose mean is known."""

import math
from itertools import combinations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from metarun.core.statistics import over_classes, over_tasks


def test_tasks_by_hand() -> None:
    """0, 1, 1, 0: standard deviation 1 / sqrt(3)."""
    assert over_tasks(np.array([0.0, 1.0, 1.0, 0.0])) == pytest.approx(1.96 / 3**0.5 / 2)
    assert over_tasks(np.array([0.5])) is None


def test_where_a_task_is_one_class_the_jackknife_is_the_interval_of_the_classes_means() -> None:
    """Ten tasks of each of six assays: the variance of the assays' means / 6, by Student's t of 5. What the formula
    adds for the draw of the tasks (s^2 / 60) and takes away (s^2 * sum of weights^2) cancels."""
    rng = np.random.default_rng(0)
    assays = np.repeat(np.arange(6), 10)
    scores = rng.normal(size=6)[assays] + rng.normal(size=60)
    means = scores.reshape(6, 10).mean(1)
    low, high = stats.t.interval(0.95, 5, loc=means.mean(), scale=stats.sem(means))
    assert over_classes(scores, assays[:, None]) == pytest.approx((high - low) / 2)


def test_additive_classes_by_hand() -> None:
    """All tasks of 2 among 6 classes, a score the mean of its classes' x: without c the mean is (sum x - x_c) / 5, so
    the jackknife is 5/6 * sum (x_c - mean)^2 / 25 = var(x) / 6. What the draw of tasks adds is computed in loops."""
    x = np.array([0.1, 0.9, 0.4, 0.6, 0.7, 0.0])
    classes = np.array(list(combinations(range(6), 2)))
    scores = x[classes].mean(1)
    tasks, spread = len(classes), scores.var(ddof=1)
    noise = 0.0
    for c in range(6):
        for task in classes:
            share = [1 / 10 if other not in task else 0 for other in range(6)]
            noise += spread * (share[c] - sum(share) / 6) ** 2
    variance = x.var(ddof=1) / 6 - 5 / 6 * noise + spread / tasks
    assert over_classes(scores, classes) == pytest.approx(stats.t.ppf(0.975, 5) * math.sqrt(variance))


@pytest.mark.parametrize("classes", [[[0, 1, 2]] * 3, [[0, 1], [0, 2], [0, 3]], [[4], [4], [4]]])
def test_nothing_is_known_where_no_class_is_ever_left_out(classes: list[list[int]]) -> None:
    assert over_classes(np.array([0.5, 0.7, 0.2]), np.array(classes)) is None


def draw_centres(rng: np.random.Generator, classes: int) -> NDArray[np.float64]:
    """Classes are points in 3 dimensions, some of them far out: [classes, 3]."""
    return np.asarray(1.5 * rng.normal(size=(classes, 3)) * np.exp(0.5 * rng.normal(size=(classes, 1))), np.float64)


def score_tasks(rng: np.random.Generator, centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """The accuracy of the nearest of one support point a class, for 5 queries a class: [tasks, N, 3] -> [tasks]."""
    support = centres + rng.normal(size=centres.shape)
    queries = centres[:, :, None] + rng.normal(size=(*centres.shape[:2], 5, 3))
    distances = ((queries[:, :, :, None] - support[:, None, None]) ** 2).sum(-1)
    right = distances.argmin(-1) == np.arange(centres.shape[1])[:, None]
    return np.asarray(right.mean((1, 2)), np.float64)


@pytest.mark.parametrize(
    ("ways", "classes", "tasks"), [(5, 8, 200), (5, 20, 100), (5, 250, 300), (2, 20, 200), (1, 30, 200)]
)
def test_the_interval_over_classes_covers_the_mean_of_the_population(ways: int, classes: int, tasks: int) -> None:
    """The truth is the mean of 40,000 tasks, each of new classes. The interval over tasks holds it rarely."""
    rng = np.random.default_rng(ways)

    def score(centres: NDArray[np.float64]) -> NDArray[np.float64]:
        if ways > 1:
            return score_tasks(rng, centres)
        level: NDArray[np.float64] = np.linalg.norm(centres[:, 0], axis=1)
        return level + rng.normal(size=len(centres))

    truth = np.mean([score(draw_centres(rng, 2000 * ways).reshape(2000, ways, 3)).mean() for _ in range(20)])
    held, narrow, repeats = 0, 0, 400
    for _ in range(repeats):
        chosen = rng.random((tasks, classes)).argsort(1)[:, :ways]
        scores = score(draw_centres(rng, classes)[chosen])
        found, usual = over_classes(scores, chosen), over_tasks(scores)
        assert found is not None
        assert usual is not None
        held += abs(scores.mean() - truth) <= found
        narrow += abs(scores.mean() - truth) <= usual
    assert held / repeats == pytest.approx(0.95, abs=0.03)
    assert narrow / repeats < (0.8 if classes < 100 else 0.9)
