"""Calibration: a perfect predictor's error is within its interval, and figures by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.probes.calibration import count_bins, expected_error, judge, largest_error


def draw_answers(sharper: float, tasks: int = 80, queries: int = 40) -> tuple[Tensor, Tensor]:
    """Probabilities of three classes, and labels drawn by them before they were sharpened."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(tasks, queries, 3, generator=generator, dtype=torch.float64)
    y = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=generator).view(tasks, queries)
    return (sharper * logits).softmax(-1), y


def interval(text: str) -> list[float]:
    return [float(number) for number in text.split(" to ")]


def test_a_perfectly_calibrated_predictor_is_within_its_interval() -> None:
    figures, _ = judge(*draw_answers(1.0), 15)
    low, high = interval(figures["if calibrated"])
    assert 0 < low < figures["ece"].mean < high < 0.03
    for sharper in (0.5, 2.0):
        figures, _ = judge(*draw_answers(sharper), 15)
        assert figures["ece"].mean - figures["ece"].ci95 > interval(figures["if calibrated"])[1]


def test_figures_by_hand() -> None:
    """Ten answers of confidence 0.8, six of them right; ten of 0.55, all right."""
    probabilities = torch.tensor([[[0.8, 0.15, 0.05]] * 10 + [[0.55, 0.25, 0.2]] * 10], dtype=torch.float64)
    y = torch.tensor([[0] * 6 + [1] * 4 + [0] * 10])
    figures, bins = judge(probabilities.repeat(2, 1, 1), y.repeat(2, 1), 15)
    assert figures["ece"].mean == pytest.approx((0.2 + 0.45) / 2)
    assert figures["mce"] == pytest.approx(0.45)
    assert figures["accuracy"].mean == pytest.approx(0.8)
    assert figures["nll"].mean == pytest.approx(-(6 * math.log(0.8) + 4 * math.log(0.15) + 10 * math.log(0.55)) / 20)
    first, second = 0.2**2 + 0.15**2 + 0.05**2, 0.8**2 + 0.85**2 + 0.05**2
    third = 0.45**2 + 0.25**2 + 0.2**2
    assert figures["brier"].mean == pytest.approx((6 * first + 4 * second + 10 * third) / 20)
    assert bins.sum(0).tolist() == pytest.approx([40, 2 * 13.5, 32])


def test_bins_as_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    confidence = rng.uniform(1 / 3, 1, (4, 50))
    confidence[0, :3] = (1.0, 2 / 15, 0.0)  # a bin holds its upper end
    right = rng.random((4, 50)) < 0.5
    error = worst = 0.0
    for i in range(15):
        inside = [(c, r) for c, r in zip(confidence.flat, right.flat) if i / 15 < c <= (i + 1) / 15 or (i == c == 0)]
        if inside:
            gap = abs(sum(float(c) - float(r) for c, r in inside))
            error, worst = error + gap / 200, max(worst, gap / len(inside))
    bins = count_bins(confidence, right, 15).sum(0)
    assert [expected_error(bins), largest_error(bins)] == pytest.approx([error, worst])
