"""Temperatures, sets of answers and scores of unknown classes: by hand, and where the truth is known."""

import math
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from metarun.config.schema import EvalSettings
from metarun.core.objectives import LABELS, LOGITS
from metarun.core.seeding import generator_for
from metarun.core.types import Dataset, Episode, Examples, TaskShape
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.table import Table
from metarun.engine import evaluate as testing
from metarun.engine.calibration import (
    STEPS,
    Answering,
    Answers,
    choose_sets,
    fit_temperature,
    fit_threshold,
    measure_sets,
    measure_unknown,
    minimise,
    open_tasks,
    temperatures,
)
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
    assert fit_temperature(Answers(z[None], torch.arange(4)[None])) is None
    assert minimise(torch.full((STEPS,), torch.nan)) is None


@pytest.mark.parametrize("queries", [2, 15])
def test_a_cautious_temperature_of_right_answers_says_that_one_more_may_be_wrong(queries: int) -> None:
    """All logits are 1 for the class and 0 for two others: what is right has the probability e / (e + 2) of 1 / T."""
    y = torch.arange(queries) % 3
    found = fit_temperature(Answers(torch.eye(3, dtype=torch.float64)[y][None], y[None]), cautious=True)
    assert found == pytest.approx(1 / math.log(2 * (queries + 1)), rel=5e-3)  # then it is (n + 1) / (n + 2)


def test_the_temperature_of_answers_is_that_of_their_cross_entropy() -> None:
    logits = torch.randn(3, 8, 4, generator=generator_for("answers"), dtype=torch.float64)
    y = torch.randint(4, (3, 8), generator=generator_for("labels"))
    y = torch.where(torch.rand(3, 8, generator=generator_for("right")) < 0.7, logits.argmax(-1), y)
    by_hand = [
        -sum(float((logits[t, i] / value).log_softmax(-1)[y[t, i]]) for t in range(3) for i in range(8)) / 24
        for value in temperatures()
    ]
    assert fit_temperature(Answers(logits, y)) == pytest.approx(minimise(torch.tensor(by_hand, dtype=torch.float64)))


def test_answers_of_a_task_are_its_predictions() -> None:
    algo, theta = algo_and_theta("protonet", "conv4_strided")
    x, y = torch.rand(6, 1, 28, 28, generator=generator_for("x"), dtype=torch.float64), torch.tensor([0, 0, 1, 1, 2, 2])
    episode = Episode(Examples(x, y), Examples(x.flip(0), y.flip(0)))
    with torch.no_grad():
        found = Answering(algo).task_metrics(theta, episode)
        logits = algo.predict(theta, algo.adapt(theta, episode.support), episode.query.x)
    torch.testing.assert_close(found[LOGITS], logits)
    assert found[LABELS].tolist() == [2, 2, 1, 1, 0, 0]


def of_probabilities(truth: list[float]) -> Answers:
    """One task of two classes, whose queries are all of class 0, with these probabilities."""
    p = torch.tensor(truth, dtype=torch.float64)
    return Answers(torch.stack([p, 1 - p], -1).log()[None], torch.zeros(1, len(truth), dtype=torch.long))


def test_the_threshold_and_its_sets_by_hand() -> None:
    """Of 19 queries ceil(0.9 * 20) = 18 must hold the class: the threshold is the last but one of the probabilities."""
    truth = [0.05 * i for i in range(1, 20)]
    answers = of_probabilities(truth)
    threshold = fit_threshold(answers, 1.0)
    assert threshold == pytest.approx(0.1)
    held, size = measure_sets(answers, 1.0, threshold - 1e-9)
    assert held.tolist() == [pytest.approx(18 / 19)]
    both = sum(0.1 <= p <= 0.9 for p in (round(value, 2) for value in truth))  # each class from the threshold on
    assert size.tolist() == [pytest.approx((2 * both + 2) / 19)]
    assert fit_threshold(of_probabilities([0.9] * 8), 1.0) == 0.0  # too few to know: all classes
    assert choose_sets(torch.tensor([[0.4, 0.35, 0.25]]), 0.5).tolist() == [[True, False, False]]  # never empty


def test_sets_hold_the_class_of_later_queries_as_often_as_they_were_made_to() -> None:
    """Labels are drawn from other probabilities than those that are told: coverage does not need these to be right."""
    generator = generator_for("conformal")
    z = torch.randn(2000, 10, 5, generator=generator, dtype=torch.float64)
    y = (0.5 * z).softmax(-1).flatten(0, 1).multinomial(1, generator=generator).view(2000, 10)
    fitted, later = Answers(2 * z[:1000], y[:1000]), Answers(2 * z[1000:], y[1000:])
    held, _ = measure_sets(later, 1.3, fit_threshold(fitted, 1.3))
    assert float(held.mean()) == pytest.approx(0.9, abs=0.01)


def test_the_area_under_the_curve_by_hand() -> None:
    """Known: 3, 1; unknown: 2, 1. Of four pairs two are right and one is a tie."""
    logits = torch.tensor([[[3.0, 0.0], [0.0, 1.0], [2.0, 0.0], [1.0, 0.0]]])
    assert measure_unknown(Answers(logits, torch.tensor([[0, 1, 2, 3]]))).tolist() == [2.5 / 4]


def test_open_tasks_have_queries_of_classes_without_support() -> None:
    """Each example holds the number of its class."""
    table = Table.from_classes(torch.arange(7).view(7, 1, 1).expand(7, 5, 1).contiguous())
    algo, _ = algo_and_theta("protonet", "conv4_strided")
    row = EvalSettings(4, 1, 0, 5, 2, 3, 10, 1, "best", {}, {})
    source = EpisodeSampler(table, TaskShape(5, 2, 3))
    tester = testing.Tester(algo, algo.backbone, source, row, "test", cast(Dataset, None))
    opened = open_tasks(tester)
    assert opened is not None
    assert opened.source.spec.output_size == 5
    support, query = opened.source.sample(4, torch.Generator())
    assert support.y[0].tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
    assert query.y[0].tolist() == [label for label in range(7) for _ in range(3)]  # two more classes are all there are
    for shown, asked in zip(support.x[..., 0], query.x[..., 0]):
        assert set(asked[15:].tolist()).isdisjoint(shown.tolist())
        assert set(asked[:15].tolist()) == set(shown.tolist())
    assert open_tasks(replace(tester, source=EpisodeSampler(table, TaskShape(7, 2, 3)))) is None
