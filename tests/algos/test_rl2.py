"""RL^2: its policy gradient against a plain form, and what its network is told."""

from typing import get_args

import torch

from metarun.core.batch import Execution, unstack
from metarun.engine.gradient import meta_gradient
from tests.reference import rl2 as reference
from tests.support.tiny import leaves
from tests.support.tiny_worlds import WORLDS, actor_and_theta, draw_trials

EPISODES = (2, 4)


def test_the_gradient_equals_plain_autograd_pull_by_pull() -> None:
    algo, theta = actor_and_theta("rl2", WORLDS["bandit"], EPISODES, **reference.SETTINGS)
    tasks = draw_trials(WORLDS["bandit"], 3)
    plain = [reference.plain_loss(theta, task, *EPISODES, **reference.SETTINGS) for task in unstack(tasks)]
    expected = torch.autograd.grad(torch.stack(plain).mean(), leaves(theta), materialize_grads=True)
    for execution in get_args(Execution):
        loss, _, gradient = meta_gradient(algo, theta, tasks, execution=execution)
        torch.testing.assert_close(loss, torch.stack(plain).mean().detach(), rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-9, atol=1e-12)


def test_returns_are_those_of_the_episodes_that_count() -> None:
    algo, theta = actor_and_theta("rl2", WORLDS["bandit"], EPISODES, **reference.SETTINGS)
    task = unstack(draw_trials(WORLDS["bandit"], 1))[0]
    played = [reference.play(theta, task, 6, 3, which) for which in range(3)]
    paid = torch.tensor([[reward for _, reward in pulls[2:]] for pulls in played], dtype=torch.float64)  # [P, 4]
    metrics = algo.task_metrics(theta, task)
    torch.testing.assert_close(metrics["return_by_episode"], paid.mean(0))
    torch.testing.assert_close(metrics["total_return"], paid.sum(1).mean())
    torch.testing.assert_close(metrics["return"], paid.mean())
