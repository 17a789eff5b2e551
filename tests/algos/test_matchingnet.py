"""Matching networks: attention by hand, its relation to prototypes, and safety where probabilities vanish."""

import math
from typing import Any

import pytest
import torch

from metarun.algos.matchingnet import Support
from metarun.core.batch import unstack
from tests.support.tiny import WAYS, algo_and_theta, episodes

PLAIN: dict[str, Any] = {"fce": False, "scale": 1.0}


def probabilities(z: torch.Tensor, g: torch.Tensor, y: Any, **settings: Any) -> torch.Tensor:
    algo, theta = algo_and_theta("matchingnet", "mlp", **{**PLAIN, **settings})
    found: torch.Tensor = algo.log_probabilities(theta, Support(g, torch.tensor(y)), z).exp()
    return found


def test_cosine_attention_to_three_points_by_hand() -> None:
    """Cosines of (1, 0) with (2, 0), (0, 3), (-1, 0): 1, 0, -1; the first two are of class 0, none of class 2."""
    g = torch.tensor([[2.0, 0.0], [0.0, 3.0], [-1.0, 0.0]], dtype=torch.float64)
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for scale in (1.0, 7.0):
        weights = [math.exp(scale), 1.0, math.exp(-scale)]
        expected = [(weights[0] + weights[1]) / sum(weights), weights[2] / sum(weights), 0.0]
        assert probabilities(z, g, [0, 0, 1], scale=scale)[0].tolist() == pytest.approx(expected, abs=1e-14)


def test_l2_attention_to_three_points_by_hand() -> None:
    """Squared distances of (1, 0) from (1, 1), (1, 2), (2, 0): 1, 4, 1."""
    g = torch.tensor([[1.0, 1.0], [1.0, 2.0], [2.0, 0.0]], dtype=torch.float64)
    z = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    near, far = math.exp(-0.5), math.exp(-2.0)
    expected = [value / (2 * near + far) for value in (near, far, near)]
    assert probabilities(z, g, [0, 1, 2], scale=0.5, distance="l2")[0].tolist() == pytest.approx(expected, abs=1e-14)


def test_with_one_shot_and_squared_distances_it_is_the_prototypical_network() -> None:
    task = unstack(episodes(1))[0]
    task = task._replace(support=type(task.support)(task.support.x[::2], task.support.y[::2]))
    assert task.support.y.tolist() == list(range(WAYS))
    matching, theta = algo_and_theta("matchingnet", "conv4", **PLAIN, distance="l2")
    prototypical, _ = algo_and_theta("protonet", "conv4")
    torch.testing.assert_close(matching.task_loss(theta, task), prototypical.task_loss(theta, task))


def test_loss_and_gradient_stay_finite_where_the_right_class_has_no_attention_left() -> None:
    """exp(-1e6) is 0 in any precision, its logarithm is not needed: the loss is the difference of the logits."""
    g = torch.tensor([[0.0], [1000.0]], requires_grad=True)
    algo, theta = algo_and_theta("matchingnet", "mlp", **PLAIN, distance="l2")
    found = algo.log_probabilities(theta, Support(g, torch.tensor([0, 1])), torch.zeros(1, 1))
    assert found[0, :2].tolist() == [0.0, -1e6]
    (gradient,) = torch.autograd.grad(found[0, 1], g)
    assert gradient.flatten().tolist() == [0.0, -2000.0]


def test_context_embeddings_change_the_answer_only_where_they_are_asked_for() -> None:
    plain, theta = algo_and_theta("matchingnet", "conv4", fce=False)
    assert set(theta) == {"backbone", "norm"}
    contextual, theta = algo_and_theta("matchingnet", "conv4", fce=True)
    assert set(theta) == {"backbone", "norm", "support_context", "query_context"}
    task = unstack(episodes(1))[0]
    assert (contextual.task_loss(theta, task)[0] - plain.task_loss(theta, task)[0]).abs() > 1e-3


def test_without_weights_the_context_adds_nothing() -> None:
    """An LSTM of zero weights says sigmoid(0) tanh(sigmoid(0) tanh(0)) = 0, at every step and from either end."""
    contextual, theta = algo_and_theta("matchingnet", "conv4", fce=True)
    plain, _ = algo_and_theta("matchingnet", "conv4", fce=False)
    for component in ("support_context", "query_context"):
        theta[component] = {name: torch.zeros_like(p) for name, p in theta[component].items()}
    task = unstack(episodes(1))[0]
    torch.testing.assert_close(contextual.task_loss(theta, task), plain.task_loss(theta, task), rtol=0, atol=1e-14)
