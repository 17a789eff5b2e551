"""A temperature is found where the cross-entropy is least."""

import pytest
import torch
from torch import Tensor

from metarun.core.seeding import generator_for
from metarun.core.types import Episode, Examples
from metarun.engine.calibration import STEPS, Judged, minimise, temperatures
from tests.support.tiny import algo_and_theta


def expected_loss(logits: Tensor, truth: Tensor, temperature: float) -> Tensor:
    """The mean cross-entropy of labels that are drawn from `truth` [n, N]."""
    return -(truth * (logits / temperature).log_softmax(-1)).sum(-1).mean()


@pytest.mark.parametrize("factor", [0.02, 0.4, 1.0, 3.0, 150.0])
def test_the_factor_by_which_logits_are_too_large_is_found(factor: float) -> None:
    """Of labels drawn from softmax(z), the cross-entropy of softmax(factor * z / T) is least at T = factor."""
    z = torch.randn(500, 5, generator=generator_for("logits"), dtype=torch.float64)
    losses = torch.stack([expected_loss(factor * z, z.softmax(-1), t) for t in temperatures()])
    assert minimise(losses) == pytest.approx(factor, rel=5e-3)


def test_there_is_no_temperature_where_all_answers_are_right_or_a_loss_is_not_finite() -> None:
    z = torch.eye(4, dtype=torch.float64)
    losses = torch.stack([expected_loss(z, z, t) for t in temperatures()])
    assert minimise(losses) is None
    assert minimise(torch.full((STEPS,), torch.nan)) is None


def test_losses_of_a_task_are_those_of_its_predictions() -> None:
    algo, theta = algo_and_theta("protonet", "conv4_strided")
    x, y = torch.rand(6, 1, 28, 28, generator=generator_for("x"), dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    episode = Episode(Examples(x, y), Examples(x.flip(0), y.flip(0)))
    with torch.no_grad():
        found = Judged(algo).task_metrics(theta, episode)["loss_by_temperature"]
        logits = algo.predict(theta, algo.adapt(theta, episode.support), episode.query.x)
    by_hand = [-(logits / t).log_softmax(-1)[torch.arange(6), y.flip(0)].mean() for t in temperatures()]
    torch.testing.assert_close(found, torch.stack(by_hand))
