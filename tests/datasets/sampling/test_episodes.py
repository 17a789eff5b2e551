"""The episode sampler: what a task is, and that it is drawn fairly and reproducibly."""

import pytest
import torch

from metarun.config.errors import ConfigError
from metarun.core.seeding import generator_for
from metarun.core.types import TaskShape
from metarun.datasets.sampling.episodes import EpisodeSampler, draw_distinct, draw_shares
from metarun.datasets.sampling.table import Table


def number_pictures(classes: int, per_class: int) -> torch.Tensor:
    """A table whose every image shows its class and its number in the class."""
    table = torch.zeros(classes, per_class, 1, 1, 2, dtype=torch.uint8)
    table[..., 0] = torch.arange(classes)[:, None, None, None]
    table[..., 1] = torch.arange(per_class)[None, :, None, None]
    return table


def read_numbers(x: torch.Tensor) -> torch.Tensor:
    """The numbers in the pictures: [..., 2]."""
    return (x * 255).round().long().flatten(-3)


def test_episodes_hold_what_their_shape_says() -> None:
    sampler = EpisodeSampler(Table.from_classes(number_pictures(10, 8)), TaskShape(ways=4, shots=2, queries=3))
    support, query = sampler.sample(6, generator_for("test"))
    assert support.x.shape == (6, 8, 1, 1, 2)
    assert query.x.shape == (6, 12, 1, 1, 2)
    assert support.y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 6
    assert query.y.tolist() == [[0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]] * 6
    assert sampler.spec.output_size == 4


def test_support_and_query_are_disjoint_and_of_the_same_classes() -> None:
    sampler = EpisodeSampler(Table.from_classes(number_pictures(10, 5)), TaskShape(ways=4, shots=2, queries=3))
    for support, query in [sampler.sample(50, generator_for("disjoint"))]:
        for s, q, sy, qy in zip(read_numbers(support.x), read_numbers(query.x), support.y, query.y):
            images = {tuple(image) for image in torch.cat([s, q]).tolist()}
            assert len(images) == 4 * 5  # no image twice
            labels = {(int(y), int(image[0])) for image, y in zip(torch.cat([s, q]), torch.cat([sy, qy]))}
            assert len(labels) == 4  # one class per label
            assert len({c for _, c in labels}) == 4


def test_every_class_and_image_is_drawn_equally_often() -> None:
    sampler = EpisodeSampler(Table.from_classes(number_pictures(6, 5)), TaskShape(ways=3, shots=1, queries=1))
    drawn = read_numbers(sampler.sample(4000, generator_for("fair")).support.x).flatten(0, 1)
    for column, options in ((0, 6), (1, 5)):
        share = torch.bincount(drawn[:, column], minlength=options) / len(drawn)
        assert (share - 1 / options).abs().max() < 0.01  # six standard deviations


def test_of_several_variants_of_a_class_a_task_holds_one() -> None:
    """Rows 4c..4c+3 belong to class c: with variants=4 no task may meet two of them."""
    sampler = EpisodeSampler(
        Table.from_classes(number_pictures(12, 4)), TaskShape(ways=3, shots=1, queries=2), variants=4
    )
    rows = read_numbers(sampler.sample(300, generator_for("variants")).support.x)[..., 0]
    assert all(len(set(task)) == 3 for task in (rows // 4).tolist())
    assert set((rows % 4).flatten().tolist()) == {0, 1, 2, 3}


@pytest.mark.parametrize("variants", [1, 4])
def test_the_classes_of_a_draw_can_be_drawn_without_its_pictures(variants: int) -> None:
    table = Table.from_classes(number_pictures(12, 4))
    sampler = EpisodeSampler(table, TaskShape(ways=3, shots=1, queries=2), variants)
    classes = sampler.draw_classes(40, generator_for("classes"))
    for part in sampler.sample(40, generator_for("classes")):
        assert torch.equal(read_numbers(part.x)[..., 0] // variants, classes.gather(1, part.y))


def test_the_same_generator_gives_the_same_tasks_and_another_gives_others() -> None:
    sampler = EpisodeSampler(Table.from_classes(number_pictures(30, 9)), TaskShape(ways=5, shots=1, queries=2))
    first, again, other = (sampler.sample(4, generator_for(seed, "train", 7)) for seed in (1, 1, 2))
    assert torch.equal(first.query.x, again.query.x)
    assert not torch.equal(first.query.x, other.query.x)


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        (TaskShape(11, 1, 1), "ways is 11: this split has 10 classes, choose ways=10 or fewer"),
        (TaskShape(5, 3, 6), "shots + queries is 3 + 6 = 9: each class of this split has 8 examples"),
    ],
)
def test_a_request_that_the_data_cannot_satisfy_is_refused_with_the_numbers(shape: TaskShape, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        EpisodeSampler(Table.from_classes(number_pictures(10, 8)), shape)
    assert message in str(error.value)


def test_distinct_indices_do_not_repeat() -> None:
    rows = draw_distinct(7, 4, (3, 100), generator_for("distinct"))
    assert rows.shape == (3, 100, 4)
    assert all(len(set(row)) == 4 for row in rows.flatten(0, 1).tolist())


def test_minibatches_hold_every_class_with_a_label_that_stays() -> None:
    """Each image is filled with its row: the label must be the row, or the row's class where rows are rotations."""
    rows = torch.arange(8, dtype=torch.uint8).view(8, 1, 1, 1, 1).expand(8, 3, 1, 2, 2)
    for variants in (1, 4):
        source = EpisodeSampler(Table.from_classes(rows), TaskShape(2, 1, 1), variants).minibatches(200)
        support, query = source.sample(2, torch.Generator().manual_seed(0))
        assert source.spec.output_size == 8 // variants
        assert support.x.shape == (2, 0, 1, 2, 2)
        assert query.x.shape == (2, 200, 1, 2, 2)
        assert torch.equal((query.x[:, :, 0, 0, 0] * 255).round().long() // variants, query.y)
        assert query.y.unique().tolist() == list(range(8 // variants))


@pytest.mark.parametrize(("ways", "size", "alpha"), [(5, 75, 2.0), (3, 12, 0.5)])
def test_shares_have_the_moments_of_the_dirichlet_multinomial(ways: int, size: int, alpha: float) -> None:
    """n_k has the mean M / N, the variance M p (1 - p) c and with another class the covariance -M p^2 c; p is 1 / N,
    and c = (M + N alpha) / (1 + N alpha). Any two labels are equal with the chance (1 + alpha) / (1 + N alpha).
    """
    y = draw_shares(ways, size, 20_000, alpha, generator_for("shares"))
    counts = torch.stack([(y == k).sum(1) for k in range(ways)], 1).double()
    p, c = 1 / ways, (size + ways * alpha) / (1 + ways * alpha)
    torch.testing.assert_close(counts.mean(0), torch.full((ways,), size * p, dtype=torch.float64), rtol=0.03, atol=0)
    expected = size * c * (p * torch.eye(ways, dtype=torch.float64) - p**2)
    torch.testing.assert_close(counts.T.cov(), expected, rtol=0.06, atol=0)
    for first, second in ((0, 1), (1, size - 1)):
        equal = float((y[:, first] == y[:, second]).double().mean())
        assert equal == pytest.approx((1 + alpha) / (1 + ways * alpha), abs=0.015)


def test_queries_by_shares_are_of_the_supports_classes_and_share_no_example_with_it() -> None:
    table = Table.from_classes(number_pictures(10, 16))
    sampler = EpisodeSampler(table, TaskShape(ways=4, shots=2, queries=3), dirichlet=0.3)
    support, query = sampler.sample(40, generator_for("skewed"))
    assert support.y.tolist() == [[0, 0, 1, 1, 2, 2, 3, 3]] * 40
    assert (query.y.diff(dim=1) >= 0).all()
    assert len({tuple(y.bincount(minlength=4).tolist()) for y in query.y}) > 10
    for shown, asked, labels in zip(read_numbers(support.x).tolist(), read_numbers(query.x).tolist(), query.y.tolist()):
        assert len({tuple(image) for image in shown + asked}) == 8 + 12
        assert all(image[0] == shown[2 * label][0] for image, label in zip(asked, labels))
    with pytest.raises(
        ConfigError, match=r"dirichlet is 0\.3: all 4 \* 4 queries .* the smallest class .* 16 examples"
    ):
        EpisodeSampler(table, TaskShape(ways=4, shots=2, queries=4), dirichlet=0.3)
