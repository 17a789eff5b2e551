"""Components that a step replaces itself, without the optimiser."""

from dataclasses import dataclass
from typing import cast

import torch

from metarun.core.types import Algorithm, Episode, Metrics, Theta
from metarun.engine.gradient import meta_gradient
from metarun.engine.loop import descend
from tests.support.steps import make_settings
from tests.support.tiny import episodes

SETTINGS = make_settings(clip_norm=1e-3)


@dataclass(frozen=True)
class Counting:
    """Learns w by (w - x)^2 / 2, and counts its steps."""

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[torch.Tensor, Metrics]:
        count = theta["counter"]["count"]
        pull = (count - (count + 1).detach()).square() / 2
        return (theta["net"]["w"] - episode.query.x.mean()).square() / 2 + pull, {}


def test_a_carried_component_is_replaced_whole_whatever_optimiser_and_clipping_do() -> None:
    theta = {
        "net": {"w": torch.tensor(5.0, dtype=torch.float64, requires_grad=True)},
        "counter": {"count": torch.tensor(0.0, dtype=torch.float64, requires_grad=True)},
    }
    optimizer = torch.optim.SGD([theta["net"]["w"]], lr=1.0)
    for step in range(3):
        _, _, gradient = meta_gradient(cast(Algorithm, Counting()), theta, episodes(4), execution="vmap")
        descend(theta, gradient, optimizer, SETTINGS, carried=("counter",))
        assert theta["counter"]["count"].item() == step + 1
        torch.testing.assert_close(theta["net"]["w"].item(), 5.0 - 1e-3 * (step + 1), rtol=1e-6, atol=0)
