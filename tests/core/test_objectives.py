"""Metrics: by hand, against a slow form, and under vmap."""

import math
from collections.abc import Sequence
from itertools import permutations
from typing import Any

import pytest
import torch
from torch.func import vmap

from metarun.core.objectives import delta_auprc, mae, measure, ndcg
from metarun.core.types import TaskSpec


def logits(ranking: list[float]) -> torch.Tensor:
    """[n, 2] whose differences are these."""
    return torch.tensor([[1.0, 1 + value] for value in ranking], dtype=torch.float64)


@pytest.mark.parametrize(
    ("ranking", "y", "precision"),
    [
        ([4, 3, 2, 1], [1, 1, 0, 0], 1),
        ([4, 3, 2, 1], [0, 0, 1, 1], (1 / 3 + 2 / 4) / 2),
        ([1, 4, 2, 3], [1, 0, 0, 1], (1 / 2 + 2 / 4) / 2),
        ([0, 0, 0, 0], [1, 0, 1, 1], 3 / 4),  # all tied: no better than chance, whatever the order
        ([5, 5, 1], [1, 0, 1], (1 / 2 + 2 / 3) / 2),  # the first is as high as the second
        ([2, 1], [0, 0], 0),  # nothing to find
    ],
)
def test_by_hand(ranking: Any, y: Any, precision: Any) -> None:
    found = delta_auprc(logits(ranking), torch.tensor(y))
    assert found.item() == pytest.approx(precision - sum(y) / len(y), abs=1e-6)


def slow(ranking: list[float], y: list[int]) -> float:
    """The sum over thresholds, from the highest down, of the recall gained times the precision there."""
    total, recall = 0.0, 0.0
    for threshold in sorted(set(ranking), reverse=True):
        taken = [label for value, label in zip(ranking, y) if value >= threshold]
        total += (sum(taken) / sum(y) - recall) * sum(taken) / len(taken)
        recall = sum(taken) / sum(y)
    return total - sum(y) / len(y)


def test_many_tasks_at_once_equal_the_sum_over_thresholds() -> None:
    generator = torch.Generator().manual_seed(0)
    ranking = torch.randint(12, (20, 30), generator=generator).double()  # many ties
    y = torch.randint(2, (20, 30), generator=generator)
    prediction = torch.stack([torch.zeros_like(ranking), ranking], dim=-1)
    expected = [slow(*task) for task in zip(ranking.tolist(), y.tolist())]
    assert vmap(delta_auprc)(prediction, y).tolist() == pytest.approx(expected, abs=1e-6)


def test_a_dataset_says_what_its_tasks_are_judged_by() -> None:
    prediction, y = logits([2, -1, 1]), torch.tensor([1, 0, 0])
    assert measure(TaskSpec("classification", (1,), 2), prediction, y) == {"accuracy": pytest.approx(2 / 3)}
    judged = measure(TaskSpec("classification", (1,), 2, metric="delta_auprc"), prediction, y)
    assert judged == {"delta_auprc": pytest.approx(1 - 1 / 3)}


def test_the_mean_absolute_error_passes_over_padding() -> None:
    prediction, y = torch.tensor([[1.0], [2.0], [9.0]]), torch.tensor([[2.0], [-1.0], [float("nan")]])
    assert mae(prediction, y) == pytest.approx((1 + 3) / 2)


@pytest.mark.parametrize(
    ("ranking", "y", "found"),
    [
        ([3, 2, 1], [2, 1, 0], 1),
        ([1, 3, 2], [1, 0, 0], 1 / 2),  # the only gain, 1, in the third place: 1 / log2(4)
        ([2, 1], [0, 0], 0),  # nothing to gain
        ([1, 2, 3, 4, 5, 6], [1, 0, 0, 0, 0, 0], 0),  # sixth
        ([0, 0], [1, 0], (1 + 1 / math.log2(3)) / 2),  # first or second, as likely
        ([2, 1, 0], [2, 1, float("nan")], 1),  # padding
    ],
)
def test_discounted_gain_by_hand(ranking: Any, y: Any, found: Any) -> None:
    columns = (torch.tensor(values, dtype=torch.float64)[:, None] for values in (ranking, y))
    assert ndcg(*columns).item() == pytest.approx(found)


def slow_ndcg(ranking: list[float], y: list[float]) -> float:
    """The mean over all orders of equal predictions, by sorting."""

    def add_up(order: Sequence[int]) -> float:
        return sum((2 ** y[i] - 1) / math.log2(2 + place) for place, i in enumerate(order[:5]))

    ways = [sorted(order, key=lambda i: -ranking[i]) for order in permutations(range(len(y)))]  # stable
    return sum(map(add_up, ways)) / len(ways) / add_up(sorted(range(len(y)), key=lambda i: -y[i]))


def test_the_gain_of_many_tasks_at_once_is_that_of_sorting_in_every_order_of_ties() -> None:
    generator = torch.Generator().manual_seed(0)
    ranking = torch.randint(4, (10, 7, 1), generator=generator).double()
    y = torch.randint(1, 11, (10, 7, 1), generator=generator).double() / 2
    expected = [slow_ndcg(a.flatten().tolist(), b.flatten().tolist()) for a, b in zip(ranking, y)]
    assert vmap(ndcg)(ranking, y).tolist() == pytest.approx(expected, rel=1e-12)
