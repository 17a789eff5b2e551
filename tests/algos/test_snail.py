"""Convolutions in time and attention look back, never ahead, and as far as they should."""

import math
from collections.abc import Callable

import pytest
import torch

from metarun.algos.snail import AttentionBlock, DenseBlock, Network
from metarun.config.errors import ConfigError
from metarun.core.batch import unstack
from tests.support.tiny import algo_and_theta, episodes

STEPS = 9


def influence(network: Callable[[torch.Tensor], torch.Tensor], channels: int) -> torch.Tensor:
    """[steps, steps], how much output t (row) changes with input s (column)."""
    x = torch.randn(STEPS, channels, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    jacobian: torch.Tensor = torch.autograd.functional.jacobian(network, x)  # [steps, outputs, steps, channels]
    return jacobian.abs().sum((1, 3))


@pytest.fixture
def seeded() -> None:
    torch.manual_seed(0)


def test_no_step_sees_a_later_one_and_the_last_sees_all(seeded: None) -> None:
    network = Network(3, STEPS, 4, [[5, 2], [3, 4]], outputs=2).double()
    found = influence(lambda x: network(x)[0], 3)
    assert not found.triu(1).any()
    assert (found[-1] > 0).all()


def test_a_convolution_sees_a_step_and_the_one_its_dilation_before(seeded: None) -> None:
    for dilation in (1, 2, 4):
        found = influence(DenseBlock(3, dilation, 2).double(), 3)
        seen = torch.eye(STEPS) + torch.eye(STEPS).roll(dilation, 0).tril(-1)
        assert torch.equal(found > 0, seen > 0)


@pytest.mark.parametrize(
    ("length", "dilations"), [(1, []), (2, [1]), (6, [1, 2, 4]), (8, [1, 2, 4]), (9, [1, 2, 4, 8])]
)
def test_the_dilations_of_a_block_reach_over_the_length(length: int, dilations: list[int]) -> None:
    blocks = Network(3, length, 4, [[5, 2], [3, 4]], outputs=2).blocks
    assert [block.dilation for block in blocks if isinstance(block, DenseBlock)] == dilations


def test_attention_by_hand() -> None:
    """Keys, queries and values are the inputs 0 and 2 themselves: the second step's scores are 0 and 4."""
    block = AttentionBlock(1, 1, 1)
    for layer in (block.query, block.key, block.value):
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.zeros_(layer.bias)
    second = math.exp(4) / (1 + math.exp(4))
    output, weights = block(torch.tensor([[0.0], [2.0]]))
    assert output.flatten().tolist() == pytest.approx([0, 0, 2, 2 * second])
    assert weights.flatten().tolist() == pytest.approx([1, 0, 1 - second, second])


def test_a_query_is_answered_without_sight_of_the_others() -> None:
    algo, theta = algo_and_theta("snail", "ngram")  # which has no norm layers
    support, query = unstack(episodes(1, backbone="ngram"))[0]
    phi = algo.adapt(theta, support)
    alone = torch.cat([algo.predict(theta, phi, x[None]) for x in query.x])
    torch.testing.assert_close(algo.predict(theta, phi, query.x), alone, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("attention", "told"), [([[3]], r"has \[3\]: each block has two sizes"), ([], "is empty: without a block")]
)
def test_blocks_without_sizes_are_refused(attention: list[list[int]], told: str) -> None:
    with pytest.raises(ConfigError, match=rf"algo\.attention {told}"):
        algo_and_theta("snail", "mlp", attention=attention)
