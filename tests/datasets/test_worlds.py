"""The worlds: what every world must fulfil, and what each is, by hand."""

from typing import Any

import pytest
import torch

from metarun.core.batch import map_tasks, unstack
from metarun.core.control import Reflex, linear_baseline, roll_out
from metarun.core.seeding import generator_for
from metarun.core.types import TaskShape, Trial
from metarun.datasets.bandit import Bandit, gittins_indices
from metarun.datasets.tabular import Tabular, best_choices
from metarun.testing import check_dataset
from tests.reference.worlds import gittins_index, optimal_return
from tests.support.tiny_worlds import CPU, WORLDS, draw_trials


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_fulfils_what_every_world_must(name: str) -> None:
    check_dataset(name)


def returns_of(world: Any, rule: str, tasks: int, episodes: int) -> torch.Tensor:
    """[T], the mean return of an episode."""

    def play(task: Trial) -> torch.Tensor:
        return roll_out(world, task, world.rule(rule, task.latent, episodes), episodes, 1).returns.mean()

    returns: torch.Tensor = map_tasks(play, draw_trials(world, tasks), "vmap")
    return returns


def test_a_gittins_index_is_that_of_bisection() -> None:
    table = gittins_indices(5, CPU)
    for left in range(1, 6):
        for paid in range(6 - left):
            for blank in range(6 - left - paid):
                assert table[left, paid, blank] == pytest.approx(gittins_index((paid, blank), left), abs=1.1e-3)


def test_rules_of_a_bandit_stand_in_the_order_of_theory_below_the_exact_optimum() -> None:
    """With 3 arms and 6 pulls; means of 4,000 tasks deviate by 0.02."""
    world = Bandit(arms=3, bonus=0.2, device=CPU)
    optimum = optimal_return(((0, 0),) * 3, 6)
    earned = {rule: 6 * float(returns_of(world, rule, 4000, 6).mean()) for rule in ("gittins", "thompson", "random")}
    assert earned["random"] == pytest.approx(3.0, abs=0.08)
    assert earned["random"] + 0.3 < earned["thompson"] < earned["gittins"] - 0.1
    assert optimum - 0.1 < earned["gittins"] < optimum + 0.08


def test_the_optimum_of_published_bandits() -> None:
    """The values in docs/agents.md."""
    assert optimal_return(((0, 0),) * 5, 10) == pytest.approx(6.660, abs=5e-4)


def test_thompson_draws_from_the_posterior() -> None:
    """An arm that has paid 3 times and not once has Beta(4, 2): mean 2/3, variance 2/63."""
    world, pulls, draws = Bandit(arms=1, bonus=0.2, device=CPU), 9, 20000
    agent: Any = world.rule("thompson", {"pays": torch.rand(1)}, pulls)
    chance = torch.rand(draws, 1, pulls, generator=generator_for("thompson"))
    drawn = agent.index(torch.full((draws, 1), 3.0), torch.ones(draws, 1), chance)
    assert drawn.mean() == pytest.approx(2 / 3, abs=0.005)
    assert drawn.var() == pytest.approx(2 / 63, abs=0.001)


def test_the_tabular_optimum_is_the_best_of_all_plans() -> None:
    """Every table of choices by step and state, on a process of 2 states, 2 choices and 2 steps, by exact sums."""
    world = Tabular(states=2, choices=2, horizon=2, device=CPU)
    task = unstack(draw_trials(world, 3))[2]
    reward, ahead = task.latent["reward"], task.latent["cumulated"].diff(dim=-1, prepend=torch.zeros(2, 2, 1))

    def worth(plan: tuple[int, ...]) -> float:
        first, *second = plan  # in state 0, then in states 0 and 1
        later = sum(ahead[0, first, state] * reward[state, choice] for state, choice in enumerate(second))
        return float(reward[0, first] + later)

    plans = [(a, b, c) for a in range(2) for b in range(2) for c in range(2)]
    best = best_choices(task.latent, 2)
    assert worth((int(best[0, 0]), *best[1].tolist())) == max(map(worth, plans))


def test_a_tabular_process_pays_and_moves_as_its_latent_parameters_say() -> None:
    world = WORLDS["tabular"]
    task = unstack(draw_trials(world, 1))[0]
    state, action, count = 1, 0, 40000
    chance = torch.rand(count, 2, generator=generator_for("chance"), dtype=torch.float64)
    after, rewards = world.step(task.latent, torch.full((count,), state), torch.full((count,), action), chance)
    assert rewards.mean() == pytest.approx(float(task.latent["reward"][state, action]), abs=0.02)
    assert rewards.std() == pytest.approx(1.0, abs=0.02)
    shares = after.bincount(minlength=3) / count
    expected = task.latent["cumulated"][state, action].diff(prepend=torch.zeros(1))
    torch.testing.assert_close(shares.double(), expected, atol=0.01, rtol=0)


def test_straight_to_a_goal_and_the_moves_are_limited() -> None:
    """Along one axis 0.25 away: moves of 0.1, 0.1, 0.05, so distances 0.15, 0.05, 0, 0."""
    world = WORLDS["navigation"]
    task = Trial({"goal": torch.tensor([0.25, 0.0])}, torch.tensor(1))
    returns = roll_out(world, task, world.rule("straight", task.latent, 1), 1, 1).returns
    torch.testing.assert_close(returns, torch.tensor([[-0.2]]))
    away = roll_out(world, task, Reflex(lambda seen, chance: torch.tensor([[-7.0, 0.0]])), 1, 1).reward
    torch.testing.assert_close(away[0, :, 0], -torch.tensor([0.35, 0.45, 0.55, 0.65]))


def test_a_world_has_other_tasks_in_every_split_and_the_same_for_a_seed() -> None:
    source = WORLDS["bandit"].tasks("test", TaskShape(1, 0, 10))
    one, again, other = (source.sample(3, generator_for(*seed)) for seed in ((0, "test"), (0, "test"), (0, "val")))
    assert torch.equal(one.latent["pays"], again.latent["pays"])
    assert torch.equal(one.salt, again.salt)
    assert not torch.isin(one.salt, other.salt).any()
    assert (source.spec.kind, source.spec.metric, source.spec.episodes) == ("control", "total_return", (0, 10))


def test_the_linear_baseline_explains_what_is_linear_in_its_features() -> None:
    seen = torch.randn(7, 40, 2, generator=generator_for("seen"), dtype=torch.float64)
    time = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None]
    linear = 2 * seen[..., 0] - seen[..., 1] ** 2 + 3 * time**2 - 1
    noise = torch.randn(7, 40, generator=generator_for("noise"), dtype=torch.float64)
    rest = linear + 0.1 * noise - linear_baseline(seen, linear + 0.1 * noise)
    assert rest.std() == pytest.approx(0.1, abs=0.01)
