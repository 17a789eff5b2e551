"""Where methods look: figures by hand, and the weights are those that predictions are made of."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import linear, pad, relu

from metarun.core.batch import map_tasks, unstack
from metarun.core.objectives import adapt_to, one_hot, predict_queries
from metarun.core.sequences import NOTHING, make_sequence
from metarun.core.types import Attention, Attentive, Episode, Theta
from metarun.probes.attention import look, measure_attention
from tests.support.tiny import WAYS, algo_and_theta, episodes


def test_figures_by_hand() -> None:
    """Two queries of class 0 and one of class 1, of which each looks at three examples of classes 0, 1 and 0."""
    weights = torch.tensor([[0.5, 0.5, 0.0], [0.25, 0.5, 0.25], [0.0, 1.0, 0.0]], dtype=torch.float64)[:, None]
    y = torch.tensor([0, 0, 1])
    found = {name: value.item() for name, value in measure_attention(Attention(weights, y, y[[0, 2, 1]])).items()}
    assert found.pop("looked at") == pytest.approx((2 + 2**1.5 + 1) / 3)
    assert found == pytest.approx(
        {"own class": (0.5 + 0.5 + 1) / 3, "alike, one class": 0.75, "alike, others": (0.5 + 0.5) / 2}
    )
    assert "own class" not in measure_attention(Attention(weights, y, None))


@pytest.mark.parametrize("norm", ["batch", "per_query"])
@pytest.mark.parametrize(
    ("name", "changes"), [("matchingnet", {}), ("metanet", {}), ("snail", {"attention": [[3, 2]]})]
)
def test_predictions_are_made_of_these_weights(name: str, changes: dict[str, Any], norm: str) -> None:
    algo, theta = algo_and_theta(name, "mlp", norm=norm, **changes)
    (task,) = unstack(episodes(1))
    weights, y, seen = algo.attend(theta, task)
    assert torch.equal(y, task.query.y)
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:2], dtype=torch.float64))
    prediction = predict_queries(algo, theta, adapt_to(algo, theta, task), task)
    for i, (row, found) in enumerate(zip(weights[:, 0], prediction)):
        torch.testing.assert_close(MADE[name](algo, theta, task, i, row, seen), found)


def answer_by_labels(algo: Any, theta: Theta, task: Episode, i: int, row: Tensor, seen: Tensor) -> Tensor:
    """MatchingNet: the log of the weights' sum over each class."""
    return (row @ one_hot(seen, WAYS).double()).log()


def answer_by_values(algo: Any, theta: Theta, task: Episode, i: int, row: Tensor, seen: Tensor) -> Tensor:
    """SNAIL with a single block: the last layer's answer to the query and the mixed values."""
    assert seen.tolist() == [*task.support.y.tolist(), NOTHING]
    query = pad(embed(algo, theta, task, i), (0, WAYS))
    steps = torch.cat([algo.adapt(theta, task.support), query[None]])
    w = theta["network"]
    mixed = row @ linear(steps, w["blocks.0.value.weight"], w["blocks.0.value.bias"])
    return linear(torch.cat([query, mixed]), w["last.weight"], w["last.bias"])


def answer_by_fast_weights(algo: Any, theta: Theta, task: Episode, i: int, row: Tensor, seen: Tensor) -> Tensor:
    """MetaNet: the base learner's answer by the slow and by the mixed weights."""
    fast = algo.adapt(theta, task.support).fast
    h: Any = embed(algo, theta, task, i)
    mixed = {name: sum(share * of_one for share, of_one in zip(row, p)) for name, p in fast.items()}
    both = (theta["base"], mixed)
    h = sum(relu(linear(h, w["0.weight"], w["0.bias"])) for w in both)
    return torch.stack([linear(h, w["1.weight"], w["1.bias"]) for w in both]).sum(0)


MADE = {"matchingnet": answer_by_labels, "snail": answer_by_values, "metanet": answer_by_fast_weights}


def embed(algo: Any, theta: Theta, task: Episode, i: int) -> Tensor:
    """The features of query i, as a test sees it."""
    features = algo.features if hasattr(algo, "features") else algo.embed
    if algo.norm == "per_query":
        found: Tensor = features(theta, torch.cat([task.support.x, task.query.x[i : i + 1]]))[-1]
    else:
        found = features(theta, task.query.x)[i]
    return found


@pytest.mark.parametrize(("norm", "steps"), [("running", 12), ("per_query", 6)])
def test_a_memory_is_read_step_by_step(norm: str, steps: int) -> None:
    algo, theta = algo_and_theta("mann", "mlp", norm=norm)
    (task,) = unstack(episodes(1))
    sequence = make_sequence(*task)
    weights, y, seen = algo.attend(theta, task)
    assert (seen, y.tolist()) == (None, sequence.y[:steps].tolist())
    torch.testing.assert_close(weights.sum(-1), torch.ones(steps, 2, dtype=torch.float64))
    z = algo.embed(theta, sequence.x if norm == "running" else task.support.x)
    state = algo.start(z[0])
    for row, z_t, previous in zip(weights, z, sequence.previous):
        state, _ = algo.step(theta, state, z_t, previous)
        torch.testing.assert_close(state.r, (row @ state.memory).flatten())  # what the output is made of


@pytest.mark.parametrize("name", ["matchingnet", "snail", "mann"])
def test_a_batch_of_tasks_is_looked_at_as_each(name: str) -> None:
    algo, theta = algo_and_theta(name, "mlp", norm="per_query")
    assert isinstance(algo, Attentive)
    with torch.no_grad():
        together, each = (map_tasks(lambda task: look(algo, theta, task), episodes(2), how) for how in ("vmap", "loop"))
    torch.testing.assert_close(together, each)


def test_uniform_attention_is_of_chance_and_as_wide_as_the_support() -> None:
    algo, theta = algo_and_theta("matchingnet", "mlp", scale=1e-12)
    (task,) = unstack(episodes(1))
    found = look(algo, theta, task)
    n = len(task.support.y)
    assert [found[name].item() for name in ("own class", "looked at")] == pytest.approx([1 / WAYS, n])
    assert math.isclose(found["alike, others"].item(), 1.0)
    assert not isinstance(algo_and_theta("protonet", "mlp")[0], Attentive)
