"""Prototypes that bear wrong labels."""

import pytest
import torch

from tests.reference.robust_protonet import plain_prototype
from tests.support.tiny import WAYS, build_algo


@pytest.mark.parametrize("shots", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("prototype", ["median", "similarity"])
def test_a_prototype_is_the_plain_one(prototype: str, shots: int) -> None:
    algo = build_algo("robust_protonet", "mlp", prototype=prototype)
    z = torch.randn(WAYS * shots, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(shots))
    y = torch.arange(WAYS).repeat(shots)  # classes take turns

    def expected(z: torch.Tensor) -> torch.Tensor:
        return torch.stack([plain_prototype(z[y == k], prototype, 3.0) for k in range(WAYS)])

    found, plain = algo.prototypes(z, y), expected(z)  # type: ignore[attr-defined]
    torch.testing.assert_close(found, plain, rtol=1e-12, atol=1e-12)
    if shots <= 2:
        means = torch.stack([z[y == k].mean(0) for k in range(WAYS)])
        torch.testing.assert_close(found, means)


@pytest.mark.parametrize("prototype", ["median", "similarity"])
def test_one_wrong_label_of_five_moves_it_less_than_the_mean(prototype: str) -> None:
    algo = build_algo("robust_protonet", "mlp", prototype=prototype)
    generator = torch.Generator().manual_seed(0)
    centres = 5 * torch.eye(WAYS, dtype=torch.float64)
    y = torch.arange(WAYS).repeat_interleave(5)
    z = centres[y] + 0.1 * torch.randn(len(y), WAYS, dtype=torch.float64, generator=generator)
    wrong = y.clone()
    wrong[[0, 5]] = wrong[[5, 0]]
    means = torch.stack([z[wrong == k].mean(0) for k in range(WAYS)])
    moved = (algo.prototypes(z, wrong) - centres).norm(dim=1)  # type: ignore[attr-defined]
    assert (moved[:2] < (means - centres).norm(dim=1)[:2] / 2).all()
