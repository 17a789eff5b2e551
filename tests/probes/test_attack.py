"""FGSM and PGD: the worst corner of a linear model, the box, and the adapted predictor of a batch of tasks."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metarun.core.batch import unstack
from metarun.core.objectives import adapt_to, predict_queries
from metarun.core.types import Episode, Examples
from metarun.datasets.preprocessing import Pictures
from metarun.engine.attack import ascend
from metarun.probes.attack import LOSSES, Attack
from tests.support.tiny import algo_and_theta, episodes

FORM = Pictures(16, 1, "squeeze", "lanczos")


def corner(weight: Tensor, pixels: Tensor, y: Tensor, radius: float) -> Tensor:
    """Of two classes with logits weight @ x: each pixel as far from the right class as it may be."""
    towards = weight[1 - y] - weight[y]  # [n, D]
    return (pixels + radius * towards.sign()).clamp(0, 1)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_worst_corner_of_a_linear_model_is_found(loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(2, 12, generator=generator, dtype=torch.float64)
    pixels, y = torch.rand(6, 12, generator=generator, dtype=torch.float64), torch.tensor([0, 1, 0, 1, 1, 0])
    start = 0.05 * (2 * torch.rand(6, 12, generator=generator, dtype=torch.float64) - 1)

    def ascended(pixels: Tensor) -> Tensor:
        return LOSSES[loss](pixels @ weight.T, y)

    worst = corner(weight, pixels, y, 0.05)
    torch.testing.assert_close(ascend(ascended, pixels, start, 0.05, 0.0125, 20), worst)
    torch.testing.assert_close(ascend(ascended, pixels, torch.zeros_like(start), 0.05, 0.05, 1), worst)


def test_pixels_stay_in_the_box() -> None:
    pixels = torch.tensor([[0.0, 0.5, 1.0]])
    up = ascend(lambda x: x.sum(), pixels, torch.full((1, 3), 0.2), 0.2, 0.1, 5)
    torch.testing.assert_close(up, torch.tensor([[0.2, 0.7, 1.0]]))
    down = ascend(lambda x: -x.sum(), pixels, torch.zeros(1, 3), 0.2, 0.1, 5)
    torch.testing.assert_close(down, torch.tensor([[0.0, 0.3, 0.8]]))


@pytest.mark.parametrize(
    ("name", "changes"),
    [("protonet", {"norm": "batch"}), ("maml", {"norm": "batch"}), ("maml", {"norm": "per_query"}), ("metal", {})],
)
def test_a_batch_of_tasks_is_attacked_as_each_by_plain_autograd(name: str, changes: dict[str, Any]) -> None:
    """The slow form takes each step by autograd, through adaptation where that sees the queries."""
    algo, theta = algo_and_theta(name, "conv4_strided", **changes)
    theta = {c: {n: p.detach() for n, p in params.items()} for c, params in theta.items()}
    tasks, attack = episodes(2), Attack(radius=0.1, step=0.025, steps=3, loss="cross-entropy")
    form = Pictures(16, 1, "squeeze", "lanczos", mean=[0.3], std=[0.5])
    with torch.no_grad():
        found = vmap(partial(attack.attack_task, form, algo, theta))(tasks)
    for i, task in enumerate(unstack(tasks)):
        support, (x, y) = task
        pixels = x * 0.5 + 0.3
        fixed = adapt_to(algo, theta, task)

        def predict(at: Tensor) -> Tensor:
            changed = Episode(support, Examples((at - 0.3) / 0.5, y))  # noqa: B023
            phi = adapt_to(algo, theta, changed) if name == "metal" else fixed  # noqa: B023
            return predict_queries(algo, theta, phi, changed)

        at = pixels.clone().requires_grad_()
        torch.nn.functional.cross_entropy(predict(at), y).backward()
        assert at.grad is not None
        low, high = (pixels - 0.1).clamp(min=0), (pixels + 0.1).clamp(max=1)
        worst = torch.minimum(torch.maximum(pixels + 0.1 * at.grad.sign(), low), high)
        for key, where in (("none", pixels), ("FGSM", worst)):
            accuracy = (predict(where).argmax(-1) == y).double().mean()
            assert float(found[key][i]) == pytest.approx(float(accuracy))
