"""The worlds: what every world must fulfil, and what each is, by hand."""

import json
import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from metarun.config.errors import ConfigError
from metarun.core.batch import map_tasks, unstack
from metarun.core.control import Reflex, linear_baseline, roll_out
from metarun.core.seeding import generator_for
from metarun.core.types import Agent, TaskShape, Trial
from metarun.datasets.bandit import Bandit, gittins_indices
from metarun.datasets.cartpole import Cart, regulate
from metarun.datasets.gridgame import GridGame
from metarun.datasets.tabular import Tabular, best_choices
from metarun.testing import check_dataset
from tests.reference.worlds import gittins_index, optimal_return
from tests.support.tiny_worlds import CPU, WORLDS, draw_trials


@pytest.mark.parametrize("name", WORLDS)
def test_a_world_fulfils_what_every_world_must(name: str) -> None:
    check_dataset(name)


def returns_of(dataset: Any, rule: str, tasks: int, episodes: int) -> torch.Tensor:
    """[T], the mean return of an episode."""
    world = dataset.tasks("train", TaskShape(1, 1, 1)).world

    def play(task: Trial) -> torch.Tensor:
        return roll_out(world, task, world.rule(rule, task.latent, episodes), episodes, 1).returns.mean()

    returns: torch.Tensor = map_tasks(play, draw_trials(dataset, tasks), "vmap")
    return returns


def act_as_told(actions: torch.Tensor) -> Agent:
    """An agent that takes these actions [H, ...], one after another, on one trajectory."""
    following = iter(actions)
    return Reflex(lambda observation, chance: next(following)[None])


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
    chance = torch.rand(draws, 2 + pulls, generator=generator_for("thompson"))
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


def test_an_episode_in_the_plane_ends_within_a_hundredth_of_the_goal() -> None:
    """At 0.005 from it along one axis; a further move is not made and not paid. Passing it at 0.02 ends nothing."""
    task = Trial({"goal": torch.tensor([0.195, 0.0])}, torch.tensor(1))

    def rewards(*moves: float) -> torch.Tensor:
        told = act_as_told(torch.tensor([[x, 0.0] for x in moves]))
        return roll_out(WORLDS["navigation"], task, told, 1, 1).reward[0, :, 0]

    torch.testing.assert_close(rewards(0.1, 0.1, -0.1, 0.1), torch.tensor([-0.095, -0.005, 0.0, 0.0]))
    torch.testing.assert_close(rewards(0.1, 0.075, 0.04, -0.02), torch.tensor([-0.095, -0.02, -0.02, 0.0]))


def plain_car(car: dict[str, float], actions: list[float], wave: float) -> list[float]:
    """The rewards of a car on a road y = sin(wave * x), with the phase 0."""
    x, y, heading, wheels, rewards = 0.0, 0.0, math.atan(wave), -car["gain"] * car["offset"], []
    for action in actions:
        wheels += car["speed"] * (car["gain"] * (min(1.0, max(-1.0, action)) - car["offset"]) - wheels)
        heading += math.tan(wheels) / car["wheelbase"]
        x, y = x + math.cos(heading), y + math.sin(heading)
        rewards.append(-abs(y - math.sin(wave * x)) * math.cos(math.atan(wave * math.cos(wave * x))))
    return rewards


def test_a_car_turns_as_a_bicycle() -> None:
    world, actions = WORLDS["driving"], [0.3, 0.1, -0.2, -7.0, 0.4]
    car = {"wheelbase": 2.5, "gain": 0.7, "offset": 0.2, "speed": 0.6}
    latent = {name: torch.tensor(value, dtype=torch.float64) for name, value in car.items()}
    state, rewards = world.reset(latent, torch.tensor([[1 / 3, 0.0]], dtype=torch.float64)), []
    for action in actions:
        state, reward = world.step(latent, state, torch.tensor([[action]]), torch.zeros(1, 2))
        rewards.append(float(reward))
    assert rewards == pytest.approx(plain_car(car, actions, 2 * math.pi / 40))


def test_a_pendulum_moves_and_costs_as_gymnasiums() -> None:
    """Pendulum-v1's equations, with its rod of 1 m and another mass."""
    world, mass = WORLDS["pendulum"], 0.8
    latent = {"mass": torch.tensor(mass, dtype=torch.float64), "length": torch.tensor(1.0, dtype=torch.float64)}
    state = world.reset(latent, torch.tensor([[0.9, 0.2]], dtype=torch.float64))
    angle, speed = float(state.angle), float(state.speed)
    for action in (0.5, -0.3, -2.0, 0.0, 0.1):
        state, reward = world.step(latent, state, torch.tensor([[action]]), torch.zeros(1, 2))
        torque = 16 * min(1.0, max(-1.0, action))
        tilt = (angle + math.pi) % (2 * math.pi) - math.pi
        assert float(reward) == pytest.approx(-(tilt**2 + 0.1 * speed**2 + 0.001 * torque**2))
        speed += (3 * 10 / 2 * math.sin(angle) + 3 / mass * torque) * 0.05
        speed = min(8.0, max(-8.0, speed))
        angle += speed * 0.05
        assert [float(state.angle), float(state.speed)] == pytest.approx([angle, speed])


CARTPOLE = {"cart": 1.0, "pole": 0.1, "half": 0.5, "force": -10.0}


def cartpole_latent() -> dict[str, torch.Tensor]:
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in CARTPOLE.items()}


def test_a_pole_moves_as_gymnasiums_until_it_falls() -> None:
    """CartPole-v1's equations with its masses, and a motor that pushes the wrong way."""
    world, latent = WORLDS["cartpole"], cartpole_latent()
    state = world.reset(latent, torch.tensor([[0.1, 0.7, 0.9, 0.4]], dtype=torch.float64))
    x, v, angle, turning = (float(part) for part in state[:4])
    for step in range(60):
        force = -10.0 if step % 3 == 0 else 10.0
        pushed = (force + 0.05 * turning**2 * math.sin(angle)) / 1.1
        down = (9.8 * math.sin(angle) - math.cos(angle) * pushed) / (0.5 * (4 / 3 - 0.1 * math.cos(angle) ** 2 / 1.1))
        linear = pushed - 0.05 * down * math.cos(angle) / 1.1
        x, v, angle, turning = x + 0.02 * v, v + 0.02 * linear, angle + 0.02 * turning, turning + 0.02 * down
        state, reward = world.step(latent, state, torch.tensor([int(force < 0)]), torch.zeros(1, 4))
        assert float(reward) == 1
        assert [float(part) for part in state[:4]] == pytest.approx([x, v, angle, turning])
        if abs(angle) >= 12 * 2 * math.pi / 360:
            break
    after, reward = world.step(latent, state, torch.tensor([1]), torch.zeros(1, 4))
    assert float(reward) == 0
    assert after == state


def test_the_regulator_solves_riccatis_equation() -> None:
    """Against SciPy, for the dynamics linearised by finite differences."""
    world, latent = WORLDS["cartpole"], cartpole_latent()

    def step(state: np.ndarray, force: float) -> np.ndarray:
        pushed = latent | {"force": torch.tensor(force, dtype=torch.float64)}
        place, speed, angle, turning = torch.from_numpy(state)[:, None]
        start = Cart(place, speed, angle, turning, stands=torch.ones(1))
        after, _ = world.step(pushed, start, torch.tensor([1]), torch.zeros(1, 4))
        return np.array([float(part) for part in after[:4]])

    small = 1e-5
    a = np.stack([(step(small * row, 0.0) - step(-small * row, 0.0)) / (2 * small) for row in np.eye(4)], -1)
    b = ((step(np.zeros(4), small) - step(np.zeros(4), -small)) / (2 * small))[:, None]
    worth = scipy.linalg.solve_discrete_are(a, b, np.eye(4), 0.01 * np.eye(1))
    gains = np.linalg.solve(0.01 + b.T @ worth @ b, b.T @ worth @ a)[0]
    np.testing.assert_allclose(regulate(latent).numpy(), gains, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "knows", "other", "least", "most"),
    [
        ("driving", "known", "average", -2.2, -8.0),
        ("pendulum", "known", "average", -32.0, -36.0),
        ("cartpole", "known", "average", 99.9, 65.0),
        ("gridgame", "optimum", "random", 1.0, 0.2),
    ],
)
def test_who_knows_the_task_does_well_and_others_do_not(
    name: str, knows: str, other: str, least: float, most: float
) -> None:
    assert returns_of(WORLDS[name], knows, 300, 1).mean() >= least
    assert returns_of(WORLDS[name], other, 300, 1).mean() <= most


def games() -> list[tuple[list[list[float]], int, int, str]]:
    """All rules of the game: what the controls do, the rows of key and door, and the split."""
    found = []
    for split in ("train", "val", "test"):
        latent = WORLDS["gridgame"].tasks(split, TaskShape(1, 1, 1)).sample(2000, generator_for("games")).latent
        rules = {
            (str(moves.tolist()), int(key), int(door))
            for moves, key, door in zip(latent["moves"], latent["key"], latent["door"])
        }
        found += [(json.loads(moves), key, door, split) for moves, key, door in rules]
    return found


def test_the_rules_of_a_game_are_in_one_split_each() -> None:
    rules = games()
    assert len({str(rule[:3]) for rule in rules}) == len(rules) == 216
    assert [sum(rule[3] == split for rule in rules) for split in ("train", "val", "test")] == [150, 22, 44]


def test_the_shortest_way_is_that_of_a_search_step_by_step() -> None:
    world = WORLDS["gridgame"].tasks("train", TaskShape(1, 1, 1)).world
    for moves, key, door, _ in games()[::20]:
        latent = {"moves": torch.tensor(moves), "key": torch.tensor(float(key)), "door": torch.tensor(float(door))}
        ways: dict[tuple[int, int, int | None], int] = {(1, 1, None): 0}
        for place in (queue := list(ways)):  # which grows
            for down, right in moves:
                row, column = min(2, max(0, place[0] + int(down))), min(2, max(0, place[1] + int(right)))
                after = (row, column, row if column == 0 else place[2])
                if after not in ways:
                    ways[after] = ways[place] + 1
                    queue.append(after)
        assert int(world.search(latent)[4 * 4].min()) == ways[door, 2, key]


def test_key_and_door_show_themselves_and_fit_each_other_alone() -> None:
    """Controls as on a compass, the key in the first row, the door in the last: the wrong key first, then the right."""
    world = GridGame(horizon=14, device=CPU).tasks("train", TaskShape(1, 1, 1)).world
    moves = torch.tensor([[-1.0, 0.0], [1.0, 0.0], [0.0, -1.0], [0.0, 1.0]])
    task = Trial({"moves": moves, "key": torch.tensor(0.0), "door": torch.tensor(2.0)}, torch.tensor(1))
    up, down, left, right = torch.arange(4)
    wrong = [left, right, right, down]  # the middle key
    fetched = [left, left, up, up, right, right, down, down, left, up]
    played = roll_out(world, task, act_as_told(torch.stack(wrong + fetched)), 1, 1)
    seen, rewards = played.observation[0, :, 0], played.reward[0, :, 0]
    right_key, right_door, solved, moves_seen = *seen[:, 13:16].T, seen[:, 16:]
    assert right_key.nonzero().flatten().tolist() == [8, 9, 10, 11, 12, 13]
    assert right_door.nonzero().flatten().tolist() == [4, 12, 13]
    assert rewards.nonzero().flatten().tolist() == [11]
    assert solved.nonzero().flatten().tolist() == [12, 13]
    assert seen[13].equal(seen[12])
    to_left, to_right = [0.0, 0.0, 0.0, 1.0], [0.0, 1.0, 0.0, 0.0]
    assert moves_seen[:4].tolist() == [[0.0] * 4, to_left, to_right, to_right]


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


def test_a_world_whose_rewards_a_device_cannot_draw_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"torch\.special\.ndtri, which device=mps lacks"):
        Tabular(states=2, choices=2, horizon=2, device=torch.device("mps"))
