"""In-context learning: what the order of the support means, and where the vectors of labels lie."""

import pytest
import torch

from metarun.config.errors import ConfigError
from metarun.core.batch import unstack
from metarun.core.types import Examples
from tests.support.tiny import algo_and_theta, episodes


@torch.no_grad()
def test_the_order_of_the_support_means_nothing() -> None:
    algo, theta = algo_and_theta("icl", "tanh")
    (task,) = unstack(episodes(1))
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    shuffled = Examples(*(part[order] for part in task.support))
    found, expected = (algo.predict(theta, algo.adapt(theta, part), task.query.x) for part in (shuffled, task.support))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)


def test_vectors_of_labels_are_of_length_1_and_equally_far_from_each_other() -> None:
    """Of N vectors of length 1 whose sum is 0, all products are -1 / (N - 1)."""
    algo, _ = algo_and_theta("icl", "tanh", label_size=7)
    corners = algo.place_labels(torch.arange(3), torch.zeros(1, dtype=torch.float64))
    assert corners.shape == (3, 7)
    torch.testing.assert_close(corners @ corners.T, 1.5 * torch.eye(3, dtype=torch.float64) - 0.5)
    with pytest.raises(ConfigError, match=r"algo\.label_size is 2: it must be at least 3, the classes of a task"):
        algo_and_theta("icl", "tanh", label_size=2)
