"""Ratings by users of few tastes, and the best possible prediction of them."""

import pytest
import torch

from metarun.core.batch import unstack
from metarun.core.objectives import mae
from metarun.core.seeding import generator_for
from metarun.core.types import Episode, TaskShape
from metarun.datasets.low_rank import LowRank
from metarun.testing import check_dataset

WORLD = LowRank(factors=6, tastes=2, noise=0.5, device=torch.device("cpu"))


SOURCE = WORLD.tasks("train", TaskShape(1, 4, 5))


def draw(tasks: int, shots: int = 4) -> list[Episode]:
    return unstack(WORLD.tasks("train", TaskShape(1, shots, 5)).sample(tasks, generator_for("users")))


def test_it_fulfils_what_every_dataset_must() -> None:
    check_dataset("low_rank")


def test_without_noise_the_ratings_of_a_user_have_as_many_degrees_of_freedom_as_tastes() -> None:
    exact = LowRank(6, 2, 1e-9, torch.device("cpu")).tasks("test", TaskShape(1, 8, 5))
    x, y = exact.sample(1, generator_for("users")).support
    known = x[0].double() @ exact.directions.double()
    fitted = known @ torch.linalg.lstsq(known, y[0].double()).solution
    torch.testing.assert_close(fitted, y[0].double(), rtol=0, atol=1e-5)


def test_ratings_have_variance_1_and_that_of_the_noise() -> None:
    rated = torch.cat([task.support.y for task in draw(4000, 20)])
    assert rated.var().item() == pytest.approx(1 + 0.5**2, rel=0.05)


def test_bayes_is_the_mean_of_the_posterior() -> None:
    """Of a Gaussian vector: the ratings of support and queries together, by conditioning."""
    task = draw(3)[2]
    x = torch.cat([task.support.x, task.query.x]).double() @ SOURCE.directions.double()
    covariance = x @ x.T
    seen = covariance[:4, :4] + 0.5**2 * torch.eye(4, dtype=torch.float64)
    expected = covariance[4:, :4] @ torch.linalg.inv(seen) @ task.support.y.double()
    found = SOURCE.predict("bayes", task.support, task.query.x)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)


def test_who_knows_more_is_nearer() -> None:
    def error(rule: str) -> float:
        return sum(float(mae(SOURCE.predict(rule, task.support, task.query.x), task.query.y)) for task in draw(400))

    assert error("bayes") < error("ridge") < error("mean")
