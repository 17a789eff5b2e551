"""The sinusoid tasks are what Finn et al. 2017 describe."""

import math

import torch

from metarun.core.seeding import generator_for
from metarun.core.types import TaskShape
from metarun.datasets.sinusoid import Sinusoid


def test_points_lie_on_sines_of_the_stated_amplitudes_and_phases() -> None:
    """Two points determine A sin(x - p) = a sin x + b cos x; all others must lie on it."""
    source = Sinusoid(torch.device("cpu")).tasks("train", TaskShape(1, 10, 20))
    support, query = source.sample(500, generator_for("sine"))
    x, y = support.x.double().squeeze(-1), support.y.double().squeeze(-1)
    basis = torch.stack([x.sin(), x.cos()], -1)
    a, b = torch.linalg.lstsq(basis, y[..., None]).solution.squeeze(-1).T
    fitted = a[:, None] * query.x.squeeze(-1).sin() + b[:, None] * query.x.squeeze(-1).cos()
    torch.testing.assert_close(fitted, query.y.double().squeeze(-1), rtol=0, atol=1e-4)
    amplitude, phase = (a**2 + b**2).sqrt(), torch.atan2(-b, a)
    assert 0.1 <= amplitude.min() < 0.3
    assert 4.8 < amplitude.max() <= 5.0 + 1e-4
    assert -1e-3 <= phase.min() < 0.1
    assert math.pi - 0.1 < phase.max() <= math.pi + 1e-3
    assert x.abs().max() <= 5
    assert support.x.shape == (500, 10, 1)
    assert query.y.shape == (500, 20, 1)
