"""Waves are sinusoids of another form, or with noise."""

import math

import pytest
import torch

from metarun.core.seeding import generator_for
from metarun.core.types import TaskShape
from metarun.datasets.sinusoid import Sinusoid
from metarun.datasets.waves import FORMS, Waves

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("wave", "values"),  # after one, one and a half, and two and a half quarters of the period
    [("square", (1, 1, -1)), ("triangle", (1, 0.5, -0.5)), ("sawtooth", (0.5, 0.75, -0.75))],
)
def test_a_wave_has_the_period_height_and_sign_of_the_sine(wave: str, values: tuple[float, ...]) -> None:
    angles = math.pi * torch.tensor([0.5, 0.75, 1.25], dtype=torch.float64)
    torch.testing.assert_close(FORMS[wave](angles), torch.tensor(values, dtype=torch.float64))
    torch.testing.assert_close(FORMS[wave](angles - 2 * math.pi), FORMS[wave](angles))


def test_noise_is_added_to_sinusoids() -> None:
    shape = TaskShape(1, 10, 20)
    plain = Sinusoid(CPU).tasks("train", shape).sample(500, generator_for("sine"))
    noisy = Waves(wave="sine", noise=0.1, device=CPU).tasks("train", shape).sample(500, generator_for("sine"))
    for part, noisy_part in zip(plain, noisy):
        assert torch.equal(noisy_part.x, part.x)
        assert (noisy_part.y - part.y).std().item() == pytest.approx(0.1, rel=0.03)
