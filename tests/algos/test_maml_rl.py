"""MAML for policies: against a plain form, finite differences of the path, and exact sums over a tiny process."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from itertools import product
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from metarun.algos.maml_rl import MAMLRL
from metarun.config.errors import ConfigError
from metarun.core.batch import Execution, map_tasks, unstack
from metarun.core.control import Rollout, sum_ahead
from metarun.core.inner import inner_step, select
from metarun.core.types import Theta
from metarun.engine.gradient import meta_gradient
from tests.reference import maml_rl as reference
from tests.support.tiny import leaves
from tests.support.tiny_worlds import WORLDS, actor_and_theta, draw_trials

PLANE = WORLDS["navigation"]


@pytest.mark.parametrize(
    "changes",
    [{}, {"first_order": True}, {"adapted": "head"}, {"adapted": "context"}, {"curvature": "path"}],
    ids=lambda changes: str(changes),
)
def test_the_meta_gradient_equals_plain_autograd_move_by_move(changes: dict[str, Any]) -> None:
    settings = reference.SETTINGS | changes
    algo, theta = actor_and_theta("maml_rl", PLANE, (4, 3), **settings)
    tasks = draw_trials(PLANE, 2)
    plain = [reference.plain_loss(theta, task, PLANE.horizon, 4, 3, **settings) for task in unstack(tasks)]
    expected = torch.autograd.grad(torch.stack(plain).mean(), leaves(theta), materialize_grads=True)
    for execution in get_args(Execution):
        loss, _, gradient = meta_gradient(algo, theta, tasks, execution=execution)
        torch.testing.assert_close(loss, torch.stack(plain).mean().detach(), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(leaves(gradient), list(expected), rtol=1e-6, atol=1e-8)  # of least squares


def test_the_gradient_of_the_path_is_the_slope_of_the_return_after_adaptation() -> None:
    algo, theta = actor_and_theta("maml_rl", PLANE, (3, 3), **reference.SETTINGS | {"curvature": "path"})
    tasks = draw_trials(PLANE, 2)
    gradient = meta_gradient(algo, theta, tasks, execution="vmap")[2]
    generator = torch.Generator().manual_seed(3)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in leaves(theta)]

    def loss_at(distance: float) -> Tensor:
        steps = iter(direction)
        moved = {c: {n: p.detach() + distance * next(steps) for n, p in ps.items()} for c, ps in theta.items()}
        losses: Tensor = map_tasks(lambda task: algo.task_loss(moved, task)[0], tasks, "loop")
        return losses.mean().detach()

    slope = sum((g * d).sum() for g, d in zip(leaves(gradient), direction))
    torch.testing.assert_close(slope, (loss_at(1e-6) - loss_at(-1e-6)) / 2e-6, rtol=1e-6, atol=1e-9)


@dataclass(frozen=True)
class TwoStates:
    """A process whose trajectories are its sequences of choices: the choice is the next state."""

    horizon: int
    observed = 2
    actions = 2
    discrete = True
    chances = 1
    rewards = ((0.2, -0.9), (1.3, 0.4))  # of a choice, by state

    def play(self, choices: tuple[int, ...]) -> Rollout:
        """The only trajectory with these choices, from state 0."""
        states = (0, *choices[:-1])
        rewards = torch.tensor([self.rewards[s][a] for s, a in zip(states, choices)], dtype=torch.float64)
        seen = torch.eye(2, dtype=torch.float64)[list(states)]
        return Rollout(seen[None, :, None], torch.tensor(choices)[None, :, None], rewards[None, :, None], seen)


class Bare(MAMLRL):
    """Without a baseline, which would explain all of the few returns there are."""

    def advantage(self, played: Rollout) -> Tensor:
        return sum_ahead(played.reward[0], self.discount)[None]


@dataclass
class Exact:
    """Sums over all trajectories of the tiny process, under a policy of theta alone."""

    algo: Bare
    theta: Theta
    world: Any

    @classmethod
    def of(cls, horizon: int) -> "Exact":
        world: Any = TwoStates(horizon)
        settings = reference.SETTINGS | {"discount": 1.0}
        made, theta = actor_and_theta("maml_rl", world, (1, 1), **settings)
        return cls(Bare(**{field.name: getattr(made, field.name) for field in fields(made)}), theta, world)

    def trajectories(self) -> list[Rollout]:
        return [self.world.play(choices) for choices in product(range(2), repeat=self.world.horizon)]

    def probability(self, phi: Theta, played: Rollout) -> Tensor:
        outputs = self.algo.outputs(self.theta, phi, played.observation)
        return self.algo.policy.log_prob(outputs, played.action).sum().exp()

    def mean_reward(self, phi: Theta) -> Tensor:
        """The exact expectation of the mean reward of a step."""
        return torch.stack([self.probability(phi, one) * one.reward.mean() for one in self.trajectories()]).sum()

    def expected(self, loss: Callable[[Rollout], Tensor], phi: Theta) -> Tensor:
        """The exact expectation of what is estimated from one trajectory, whose choices count as given."""
        return torch.stack([self.probability(phi, one).detach() * loss(one) for one in self.trajectories()]).sum()

    def slopes(self, value: Tensor) -> Tensor:
        found = torch.autograd.grad(value, leaves(self.theta), materialize_grads=True, retain_graph=True)
        return torch.cat([g.flatten() for g in found])


def test_the_surrogates_gradient_is_that_of_the_mean_reward() -> None:
    for horizon in (1, 2, 3):
        exact = Exact.of(horizon)
        phi = select(exact.theta, "backbone", "head")
        surrogate = exact.expected(lambda one: exact.algo.judge(exact.theta, phi, one), phi)  # noqa: B023
        torch.testing.assert_close(
            exact.slopes(surrogate), exact.slopes(-exact.mean_reward(phi)), rtol=1e-9, atol=1e-12
        )


def test_the_meta_gradient_of_the_ratio_is_exact_for_one_step_and_else_nearer_than_what_is_simpler() -> None:
    """F(theta) is the exact return after a step along the exact policy gradient: of so many episodes that no chance is
    left. With longer episodes the ratio leaves out how one choice changes the worth of a later one.
    """
    for horizon in (1, 2):
        exact = Exact.of(horizon)
        algo, theta, phi = exact.algo, exact.theta, select(exact.theta, "backbone", "head")

        def log_probability(weights: Theta, one: Rollout) -> Tensor:
            outputs = algo.outputs(theta, weights, one.observation)  # noqa: B023
            return -(algo.policy.log_prob(outputs, one.action) * algo.advantage(one)).mean()  # noqa: B023

        def after(loss: Callable[[Theta], Tensor], first_order: bool = False) -> Tensor:
            return exact.slopes(exact.mean_reward(inner_step(loss, phi, lr=2.0, first_order=first_order)))  # noqa: B023

        def ratio(w: Theta) -> Tensor:
            return exact.expected(lambda one: algo.judge(theta, w, one), phi)  # noqa: B023

        def dice(weights: Theta, one: Rollout) -> Tensor:
            """Foerster et al. 2018, https://arxiv.org/abs/1802.05098: all derivatives are unbiased."""
            log = algo.policy.log_prob(algo.outputs(theta, weights, one.observation), one.action).cumsum(1)  # noqa: B023
            return -((log - log.detach()).exp() * one.reward).mean()

        true = after(lambda w: -exact.mean_reward(w))  # noqa: B023
        found = {
            "ratio": after(ratio),
            "first order": after(ratio, first_order=True),
            "dice": after(lambda w: exact.expected(lambda one: dice(w, one), phi)),  # noqa: B023
            "log-probability": after(lambda w: exact.expected(lambda one: log_probability(w, one), phi)),  # noqa: B023
        }
        errors = {name: float((gradient - true).norm() / true.norm()) for name, gradient in found.items()}
        print(errors)
        assert errors["dice"] < 1e-9
        assert errors["ratio"] < (1e-9 if horizon == 1 else min(errors["first order"], errors["log-probability"]))


def test_a_path_through_choices_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"algo\.curvature is path: it needs actions that are numbers"):
        actor_and_theta("maml_rl", WORLDS["bandit"], (1, 1), **reference.SETTINGS | {"curvature": "path"})
