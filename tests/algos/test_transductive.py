"""Heads that see queries: what one query's answer depends on, and what alpha = 1 is."""

import pytest
import torch

from metarun.core.batch import unstack
from metarun.core.objectives import adapt_to
from metarun.core.types import Examples
from tests.reference.alpha_tim import plain_loss
from tests.support.tiny import algo_and_theta, episodes


@pytest.mark.parametrize("transductive", [True, False])
@pytest.mark.parametrize("name", ["alpha_tim", "laplacianshot"])
@torch.no_grad()
def test_an_answer_depends_on_the_other_queries_only_where_they_are_seen(name: str, transductive: bool) -> None:
    algo, theta = algo_and_theta(name, "tanh", transductive=transductive)
    (task,) = unstack(episodes(1))
    fewer = task._replace(query=Examples(task.query.x[:4], task.query.y[:4]))
    together = algo.predict(theta, adapt_to(algo, theta, task), task.query.x)[:4]
    alone = algo.predict(theta, adapt_to(algo, theta, fewer), fewer.query.x)
    assert torch.allclose(together, alone, rtol=1e-9) is not transductive


def test_a_lone_query_has_no_neighbours() -> None:
    algo, theta = algo_and_theta("laplacianshot", "tanh", rectified=False)
    (task,) = unstack(episodes(1))
    alone = task._replace(query=Examples(task.query.x[:1], task.query.y[:1]))
    found = algo.predict(theta, adapt_to(algo, theta, alone), alone.query.x)
    expected = algo.predict(theta, algo.adapt(theta, task.support), alone.query.x)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_alpha_1_is_shannons_entropy(alpha: float) -> None:
    algo, theta = algo_and_theta("alpha_tim", "tanh", alpha=alpha)
    (task,) = unstack(episodes(1))
    loss = plain_loss(
        "tanh", theta, task, alpha=alpha, temperature=algo.temperature, steps=algo.steps, lr=algo.lr, transductive=True
    )
    torch.testing.assert_close(algo.task_loss(theta, task)[0], loss, rtol=1e-10, atol=0)
