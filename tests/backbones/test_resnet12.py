"""ResNet-12: its size as published; DropBlock; what it refuses. Its function is in the tests over all backbones."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.backbones.resnet12 import drop_block
from metarun.cli.compose import compose
from metarun.config.errors import ConfigError
from metarun.config.load import load_settings, resolve
from metarun.config.registry import build
from metarun.core.seeding import generator_for, hash_uniform
from metarun.core.types import Episode, Examples
from metarun.datasets.sampling.numbered import Numbered, add_numbers
from metarun.engine.build import Experiment
from metarun.engine.gradient import meta_gradient
from tests.support.tiny import algo_and_theta, episodes, leaves

FILTERS = [64, 160, 320, 640]
SETTINGS = {"name": "resnet12", "filters": [3, 4, 4, 5], "drop_rate": 0.0, "drop_size": 5}


def test_size_is_the_published_one() -> None:
    """9 i o + 18 o^2 weights in a block's 3x3 convolutions, i o in the 1x1 one, 8 o in four norms: 12.4 million."""
    network = build("backbone", {**SETTINGS, "filters": FILTERS}, input_shape=(3, 84, 84))
    pairs = zip([3, *FILTERS], FILTERS)
    assert sum(p.numel() for p in network.parameters()) == sum(10 * i * o + 18 * o**2 + 8 * o for i, o in pairs)
    assert sum(p.numel() for p in network.parameters()) == 12_424_320
    assert network.blocks(torch.zeros(2, 3, 84, 84)).shape == (2, 640, 5, 5)
    assert network.feature_size == 640


def test_weights_are_drawn_as_published() -> None:
    """Variance 2 / fan_out: of 64 filters of 3x3, 2 / 576."""
    torch.manual_seed(0)
    network = build("backbone", {**SETTINGS, "filters": [64] * 4}, input_shape=(3, 16, 16))
    assert network.blocks[0].convs[1].weight.var().item() == pytest.approx(2 / 576, rel=0.03)


@pytest.mark.parametrize(("side", "size", "places"), [(6, 3, 4), (5, 5, 1), (2, 5, 1), (4, 1, 4)])
def test_squares_are_dropped_where_the_numbers_say(side: int, size: int, places: Any) -> None:
    """Against a square at a time. Eq. 1 with H = W = side: gamma = rate / size^2 * side^2 / places^2."""
    x, numbers, rate = torch.rand(40, 3, side, side, dtype=torch.float64) + 1, torch.arange(40.0), 0.1
    kept = torch.ones_like(x)
    draws = hash_uniform(3 * places * places, numbers).view(40, 3, places, places)
    gamma = rate / min(size, side) ** 2 * side**2 / places**2
    for image, channel, row, column in ((draws + 1) / 2 < gamma).nonzero().tolist():
        kept[image, channel, row : row + size, column : column + size] = 0
    assert 0 < kept.sum() < kept.numel()
    torch.testing.assert_close(drop_block(x, numbers, rate, size), x * kept * kept.numel() / kept.sum())


def test_the_rate_is_what_is_dropped_and_the_rest_makes_up_for_it() -> None:
    dropped = drop_block(torch.ones(500, 4, 10, 10), torch.arange(500.0), 0.1, 1)
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 200_000) ** 0.5)
    assert dropped.mean().item() == pytest.approx(1.0)


def test_hashed_numbers_of_many_salts_are_those_of_each() -> None:
    salts = torch.tensor([[0.0, 1.0], [7.0, 2.0**22]])
    torch.testing.assert_close(hash_uniform(9, salts)[1, 0], hash_uniform(9, torch.tensor(7.0)), rtol=0, atol=0)
    assert hash_uniform(9, salts).flatten().unique().numel() == 36


def with_numbers(x: Tensor, numbers: Sequence[float]) -> Tensor:
    return torch.cat([x, torch.tensor(numbers, dtype=x.dtype).view(-1, 1, 1, 1).expand(-1, 1, *x.shape[2:])], 1)


def test_features_are_dropped_only_where_inputs_have_numbers() -> None:
    torch.manual_seed(0)
    network = build("backbone", {**SETTINGS, "drop_rate": 0.3}, input_shape=(2, 32, 32))
    plain_network = build("backbone", SETTINGS, input_shape=(2, 32, 32))
    plain_network.load_state_dict(network.state_dict())
    x = torch.rand(3, 2, 32, 32)
    assert (network.numbered, plain_network.numbered) == (True, False)
    torch.testing.assert_close(network(x), plain_network(x), rtol=0, atol=0)
    found = [network(with_numbers(x, numbers)) for numbers in ([1, 2, 3], [1, 2, 3], [1, 2, 4], [0, 0, 0])]
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)
    assert not any(
        torch.allclose(a, b) for a, b in ((found[0], found[2]), (found[0], found[3]), (found[0], network(x)))
    )


def glyphs(*overrides: str) -> Experiment:
    small = ("backbone=resnet12", "backbone.filters=[3,4,4,5]", "dataset.classes_train=20", "dataset.image_size=16")
    return Experiment.build(load_settings(resolve(compose(["algo=protonet", "device=cpu", *small, *overrides]))))


def test_training_tasks_have_numbers_and_tests_have_none() -> None:
    experiment, without = glyphs("backbone.drop_rate=0.1"), glyphs()
    tasks, same, pictures = (
        source.sample(3, generator_for(0)) for source in (experiment.source, experiment.source, without.source)
    )
    assert isinstance(experiment.source, Numbered)
    assert experiment.source.spec == without.source.spec
    torch.testing.assert_close(tasks, same, rtol=0, atol=0)
    torch.testing.assert_close(tasks.support.x[:, :, :-1], pictures.support.x, rtol=0, atol=0)
    numbers = [part.x[:, :, -1].flatten(2) for part in tasks]
    assert all((of_all == of_all[..., :1]).all() for of_all in numbers)
    first = torch.cat([of_all[..., 0].flatten() for of_all in numbers])
    assert first.unique().numel() == first.numel()
    tester = experiment.build_tester(experiment.plan_rows()["test"], "val")
    assert tester.source.sample(1, generator_for(0)).query.x.shape[2:] == (1, 16, 16)


@pytest.mark.parametrize("name", ["maml", "protonet"])
def test_the_gradient_with_dropped_features_is_the_same_by_vmap_and_by_a_loop(name: str) -> None:
    algo, theta = algo_and_theta(name, "resnet12")
    algo.backbone.drop_rate = 0.3
    plain_tasks, draw = episodes(2), generator_for(0)
    tasks = Episode(*(Examples(add_numbers(x, draw), y) for x, y in plain_tasks))
    loss, _, gradient = meta_gradient(algo, theta, tasks, execution="vmap")
    loss_by_loop, _, gradient_by_loop = meta_gradient(algo, theta, tasks, execution="loop")
    torch.testing.assert_close(loss, loss_by_loop)
    torch.testing.assert_close(leaves(gradient), leaves(gradient_by_loop), rtol=1e-9, atol=1e-12)
    assert not torch.allclose(loss, meta_gradient(algo, theta, plain_tasks, execution="loop")[0])


@pytest.mark.parametrize(
    ("filters", "shape", "message"),
    [
        (FILTERS, (1, 14, 14), "backbone=resnet12 takes square images [C, S, S] with S at least 16, and this dataset"),
        (FILTERS, (1,), "backbone=resnet12 takes square images [C, S, S] with S at least 16, and this dataset"),
        ([4, 4], (1, 28, 28), "backbone.filters has 2 numbers: it must have 4, one for each block"),
    ],
)
def test_what_does_not_fit_is_told_in_a_line(filters: list[int], shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build("backbone", {**SETTINGS, "filters": filters}, input_shape=shape)
    assert str(error.value).startswith(message)


def test_a_rate_of_one_leaves_nothing() -> None:
    with pytest.raises(ConfigError, match=r"backbone.drop_rate is 1"):
        build("backbone", {**SETTINGS, "drop_rate": 1.0}, input_shape=(1, 16, 16))
