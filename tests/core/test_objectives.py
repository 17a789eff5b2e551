"""Average precision above chance: by hand, against a slow form, and under vmap."""

from typing import Any

import pytest
import torch
from torch.func import vmap

from metarun.core.objectives import delta_auprc, measure
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
