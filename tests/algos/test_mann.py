"""Least recently used access against a memory worked out on paper."""

import math

import pytest
import torch

from metarun.algos.mann import State, address, least_used, write
from metarun.config.errors import ConfigError
from tests.support.tiny import algo_and_theta


def double(*values: float | list[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_each_head_gets_the_least_used_row_that_is_left_and_of_equals_the_first() -> None:
    """Usage 0.3, 0.1, 0.2, 0.1: row 1 and then row 3."""
    assert least_used(double(0.3, 0.1, 0.2, 0.1), 2).tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_a_write_by_hand() -> None:
    """Head 0 writes (1, 2) by the weights (0.5, 0.25, 0), head 1 (0, 4) by (0, 0, 1); row 1 is cleared before:
    (1, 1) + 0.5 (1, 2), then 0.25 (1, 2), then (5, 6) + (0, 4)."""
    memory, least = double([1, 1], [3, 3], [5, 6]), double([0, 1, 0], [1, 0, 0])
    weights, vectors = double([0.5, 0.25, 0], [0, 0, 1]), double([1, 2], [0, 4])
    assert write(memory, weights, vectors, least).tolist() == [[1.5, 2], [0.25, 0.5], [5, 10]]


def test_an_address_by_hand() -> None:
    """The key (2, 0) has cosine 1 with (3, 0), 0 with (0, 1), -1 with (-1, 0), whatever their lengths."""
    weights = [math.e, 1, 1 / math.e]
    found = address(double([3, 0], [0, 1], [-1, 0]), double([2, 0]))
    assert found[0].tolist() == pytest.approx([w / sum(weights) for w in weights], abs=1e-12)


def test_an_empty_row_has_cosine_zero_and_a_finite_gradient() -> None:
    memory = double([0, 0], [0, 2]).requires_grad_()
    found = address(memory, double([0, 1]))
    assert found[0].tolist() == pytest.approx([1 / (1 + math.e), math.e / (1 + math.e)], abs=1e-12)
    assert torch.autograd.grad(found[0, 0], memory)[0].isfinite().all()


def test_a_step_by_hand() -> None:
    """Two heads over three rows of width 1, and weights of zero but for the heads' biases: whatever is seen, head 0
    has the key tanh(1), writes tanh(2) and has a gate of 1/2; head 1 tanh(-1), tanh(1), 3/4.

    Read was (1, 0, 0) and (0, 0, 1), usage is (0.4, 0.1, 0.2): least are row 1 and row 2. Head 0 writes by
    1/2 (1, 0, 0) + 1/2 (0, 1, 0), head 1 by 3/4 (0, 0, 1) + 1/4 (0, 0, 1).
    The memory (0.5, 7, -0.5) becomes (0.5 + tanh(2) / 2, 0 + tanh(2) / 2, -0.5 + tanh(1)): all above zero, so that
    each row has cosine 1 with the key of head 0 and -1 with that of head 1: both read the mean.
    """
    algo, theta = algo_and_theta("mann", "mlp", rows=3, width=1, heads=2, decay=0.5)
    theta = {c: {name: torch.zeros_like(p) for name, p in params.items()} for c, params in theta.items()}
    theta["heads"]["bias"] = double(1, 2, 0, -1, 1, math.log(3))
    nothing = torch.zeros(5, dtype=torch.float64)
    state = State(
        h=nothing,
        c=nothing,
        memory=double([0.5], [7], [-0.5]),
        reads=double([1, 0, 0], [0, 0, 1]),
        usage=double(0.4, 0.1, 0.2),
        r=double(0, 0),
    )
    after, logits = algo.step(theta, state, torch.zeros(algo.backbone.feature_size).double(), torch.tensor(0))
    one, two = math.tanh(1), math.tanh(2)
    rows = [0.5 + two / 2, two / 2, -0.5 + one]
    assert after.memory.flatten().tolist() == pytest.approx(rows, abs=1e-12)
    torch.testing.assert_close(after.reads, double([1 / 3] * 3, [1 / 3] * 3), rtol=0, atol=1e-9)
    assert after.r.tolist() == pytest.approx([sum(rows) / 3] * 2, abs=1e-9)
    assert after.usage.tolist() == pytest.approx([0.2 + 2 / 3 + 0.5, 0.05 + 2 / 3 + 0.5, 0.1 + 2 / 3 + 1], abs=1e-9)
    assert logits.tolist() == [0, 0, 0]


def test_more_heads_than_rows_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"algo\.heads is 4: at most algo\.rows=3, since each writes to its own row"):
        algo_and_theta("mann", "mlp", rows=3, heads=4)
