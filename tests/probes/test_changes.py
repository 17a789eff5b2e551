"""Probes that change tasks: of strength zero bit for bit the same, and otherwise what a hand would do."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from metarun.config.load import read_option
from metarun.core.types import Episode, Examples, TaskShape
from metarun.datasets.preprocessing import Pictures, from_network, to_network
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.order import InOrder
from metarun.datasets.sampling.table import Table
from metarun.probes.corruption import CORRUPTIONS, corrupt_tasks
from metarun.probes.imbalance import draw_shots, thin
from metarun.probes.noise import change_labels
from metarun.probes.probe import Changed

FORM = Pictures(28, 1, "squeeze", "lanczos")


def sampler(seed: int, shots: int = 5) -> EpisodeSampler:
    """Classes of twenty pictures of 12 x 12 noise."""
    return EpisodeSampler(Table.from_classes(draw_images(seed)), TaskShape(ways=4, shots=shots, queries=3))


def draw_images(seed: int) -> Tensor:
    return torch.randint(0, 256, (12, 20, 1, 12, 12), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


SOURCE, STRANGERS = sampler(0), sampler(1)


def sample(rate: float, kind: str, source: EpisodeSampler | InOrder = SOURCE, tasks: int = 20) -> Episode:
    changed = Changed(source, lambda task, generator: change_labels(rate, kind, STRANGERS, task, generator))
    return changed.sample(tasks, torch.Generator().manual_seed(7))


def clean(source: EpisodeSampler | InOrder = SOURCE) -> Episode:
    return source.sample(20, torch.Generator().manual_seed(7))


def assert_equal(first: Episode, second: Episode) -> None:
    for part, other in zip(first, second):
        assert torch.equal(part.x, other.x)
        assert torch.equal(part.y, other.y)


@pytest.mark.parametrize("kind", ["symmetric", "paired", "outlier"])
@pytest.mark.parametrize("source", [SOURCE, InOrder(SOURCE, mixed=False, strings=True)], ids=["classes", "strings"])
def test_no_noise_changes_nothing_and_more_changes_as_many_of_each_class(
    kind: str, source: EpisodeSampler | InOrder
) -> None:
    before = clean(source)
    assert_equal(sample(0.0, kind, source), before)
    earlier = torch.zeros_like(before.support.y, dtype=torch.bool)
    for rate, each in ((0.2, 1), (0.4, 2), (0.6, 3)):
        after = sample(rate, kind, source)
        assert_equal(Episode(after.query, after.query), Episode(before.query, before.query))
        pictures = (after.support.x != before.support.x).flatten(2).any(-1)
        wrong = pictures if kind == "outlier" else after.support.y != before.support.y
        assert bool((wrong | ~earlier).all())  # what is wrong stays wrong at a higher rate
        earlier = wrong
        assert torch.equal(pictures.any(), torch.tensor(kind == "outlier"))
        for labels, bad in zip(before.support.y, wrong):
            assert [int(bad[labels == label].sum()) for label in labels.unique()] == [each] * 4
        assert torch.equal(after.support.y.sort(1).values, before.support.y.sort(1).values)  # as many shots as before


def test_paired_noise_is_of_the_next_class_and_symmetric_noise_of_any_other() -> None:
    before = clean().support.y
    paired = sample(0.6, "paired").support.y
    steps = (paired - before)[paired != before] % 4
    assert steps.tolist() == [1] * len(steps)
    steps = (sample(0.6, "symmetric").support.y - before).flatten() % 4
    counts = steps.bincount(minlength=4)
    assert counts[0] == 20 * 8
    expected = counts[1:].sum() / 3
    assert ((counts[1:] - expected).square() / expected).sum() < 13.8  # chi squared of 2 degrees, p of 0.001


@pytest.mark.parametrize(("rate", "wrong"), [(0.0, 0), (0.2, 2), (0.4, 2), (0.6, 3), (1.0, 5)])
def test_of_one_shot_each_two_examples_are_exchanged_at_least(rate: float, wrong: int) -> None:
    one = EpisodeSampler(SOURCE.table, TaskShape(ways=5, shots=1, queries=3))
    before = one.sample(20, torch.Generator().manual_seed(7)).support.y
    for kind in ("symmetric", "paired"):
        after = sample(rate, kind, one).support.y
        assert (before != after).sum(1).tolist() == [wrong] * 20


def test_outliers_are_pictures_of_the_other_source() -> None:
    before, after = clean().support.x, sample(0.4, "outlier").support.x
    changed = after[(before != after).flatten(2).any(-1)]
    theirs = draw_images(1).float().div(255).flatten(0, 1).flatten(1)
    assert changed.flatten(1)[:, None].eq(theirs).all(-1).any(-1).all()


def test_balanced_is_the_first_shots_of_each_class() -> None:
    many = sampler(0, shots=6).sample(5, torch.Generator().manual_seed(7))
    few = thin(2, None, many, torch.Generator())
    expected = many.support.x.unflatten(1, (4, 6))[:, :, :2].flatten(1, 2)
    assert torch.equal(few.support.x, expected)
    assert few.support.y.tolist() == 5 * [[0, 0, 1, 1, 2, 2, 3, 3]]


def test_shots_differ_at_a_fixed_total() -> None:
    many = sampler(0, shots=6).sample(50, torch.Generator().manual_seed(7))
    uneven, even = (thin(3, value, many, torch.Generator().manual_seed(1)).support for value in (0.5, 1e6))
    counts = torch.stack([labels.bincount(minlength=4) for labels in uneven.y])
    assert counts.sum(1).tolist() == [12] * 50
    assert (int(counts.min()), int(counts.max())) == (1, 6)
    assert [labels.bincount().tolist() for labels in even.y] == 50 * [[3, 3, 3, 3]]
    for x, y, whole in zip(uneven.x, uneven.y, many.support.x.unflatten(1, (4, 6))):
        for label in range(4):
            mine = x[y == label]
            assert torch.equal(mine, whole[label, : len(mine)])


def test_shots_follow_the_shares() -> None:
    class Given(np.random.Generator):
        def dirichlet(self, *_: object) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
            return np.array([0.7, 0.2, 0.1])

    rng = Given(np.random.PCG64(0))
    assert draw_shots(rng, 3, 11, 99, 1.0).tolist() == [1 + 21, 1 + 6, 1 + 3]
    assert draw_shots(rng, 3, 4, 5, 1.0).tolist() == [5, 4, 3]  # 7.3, 2.8 and 1.9 of 12: a full class gives away


X = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))


def apply(name: str, value: float, x: Tensor = X) -> Tensor:
    return CORRUPTIONS[name](x, value, torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("noise", 0.0),
        ("contrast", 1.0),
        ("brightness", 0.0),
        ("pixelation", 28),
        ("occlusion", 0.0),
        ("shift", 0.0),
        ("rotation", 0.0),
        ("blur", 1e-3),
    ],
)
def test_no_corruption_changes_nothing(name: str, value: float) -> None:
    torch.testing.assert_close(apply(name, value), X, atol=1e-5, rtol=0)


def test_corruptions_by_hand() -> None:
    flat = torch.full((2, 3, 28, 28), 0.25)
    assert apply("noise", 0.1, flat).sub(flat).std().item() == pytest.approx(0.1, rel=0.05)
    torch.testing.assert_close(apply("blur", 1.5, flat), flat)
    point = torch.zeros(1, 1, 28, 28)
    point[..., 14, 14] = 1.0
    blurred = apply("blur", 1.0, point)[0, 0]
    torch.testing.assert_close(blurred[14, 15] / blurred[14, 14], torch.tensor(math.exp(-0.5)))
    assert float(blurred.sum()) == pytest.approx(1.0, rel=1e-5)
    assert float(apply("contrast", 0.5).var() / X.var()) == pytest.approx(0.25, rel=0.01)
    torch.testing.assert_close(apply("brightness", 0.2), X + 0.2)
    blocks = apply("pixelation", 14)
    torch.testing.assert_close(blocks[..., ::2, ::2], X.unfold(2, 2, 2).unfold(3, 2, 2).mean((-1, -2)))
    assert torch.equal(blocks[..., ::2, :], blocks[..., 1::2, :])
    hidden = apply("occlusion", 0.5, flat) == 0
    assert hidden[:, 0].sum((1, 2)).tolist() == [14 * 14] * 2
    turned = apply("rotation", 90.0)
    assert all(min((turned[i] - X[i].rot90(k, (1, 2))).abs().max() for k in (1, 3)) < 1e-4 for i in range(3))
    row = torch.arange(28.0)[:, None].expand(28, 28)[None, None] / 28
    moved = apply("shift", 0.1, row)[0, 0, 10:18, 10:18] - row[0, 0, 10:18, 10:18]
    across = apply("shift", 0.1, row.mT)[0, 0, 10:18, 10:18] - row.mT[0, 0, 10:18, 10:18]
    assert float((moved.mean().square() + across.mean().square()).sqrt()) == pytest.approx(0.1, rel=1e-3)


def test_pictures_are_corrupted_before_they_are_normalised() -> None:
    form = Pictures(28, 3, "crop", "bilinear", mean=[0.4, 0.5, 0.6], std=[0.2, 0.25, 0.3])
    pixels = torch.rand(2, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    x = to_network(form, pixels)
    torch.testing.assert_close(x[:, 2], (pixels[:, 2] - 0.6) / 0.3)
    torch.testing.assert_close(from_network(form, x), pixels)
    tasks = Episode(Examples(x[None], torch.zeros(1, 2)), Examples(x[None], torch.zeros(1, 2)))
    for part in ("query", "support", "both"):
        changed = corrupt_tasks(CORRUPTIONS["brightness"], 0.5, part, form, tasks, torch.Generator())
        bright = to_network(form, (pixels + 0.5).clamp(max=1))[None]
        torch.testing.assert_close(changed.query.x, bright if part != "support" else x[None])
        torch.testing.assert_close(changed.support.x, bright if part != "query" else x[None])


@pytest.mark.parametrize("size", ["small", "large"])
def test_every_corruption_has_five_severities_each_worse(size: str) -> None:
    severities = read_option("probe", "corruption")[size]
    assert severities.keys() == CORRUPTIONS.keys()
    side = 28 if size == "small" else 84
    smooth = apply("blur", 2.0)
    x = torch.nn.functional.interpolate(
        (smooth - smooth.amin()) / (smooth.amax() - smooth.amin()), side, mode="bilinear"
    )
    for name, values in severities.items():
        changes = [(apply(name, value, x).clamp(0, 1) - x).square().mean() for value in values]
        assert len(values) == 5
        assert all(first < second for first, second in pairwise(changes)), name
