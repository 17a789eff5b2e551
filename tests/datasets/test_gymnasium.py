"""The adapter: episodes are those of Gymnasium's own loop, whatever is asked in whatever order."""

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import vmap

from metarun.config.errors import ConfigError
from metarun.core.control import Reflex, roll_out
from metarun.core.seeding import draw_uniform
from metarun.core.types import Trial
from metarun.datasets.gymnasium import Gymnasium, play_gymnasium
from metarun.testing import check_dataset

THERE = importlib.util.find_spec("gymnasium") is not None
needs_gymnasium = pytest.mark.skipif(not THERE, reason="needs metarun[gymnasium]")
CPU = torch.device("cpu")
PENDULUM = Gymnasium("Pendulum-v1", {"m": [0.5, 2.0], "l": [0.5, 1.5]}, 5, CPU)
CART = Gymnasium("CartPole-v1", {"force_mag": [5.0, 15.0]}, 40, CPU)


def trial(**latent: float) -> Trial:
    return Trial({name: torch.tensor(value, dtype=torch.float64) for name, value in latent.items()}, torch.tensor(7))


def play_plainly(env_name: str, task: Trial, episode: int, actions: list[Any]) -> tuple[list[Any], list[float]]:
    """Observations before each action, and rewards, by Gymnasium's own loop."""
    import gymnasium

    env = gymnasium.make(env_name)
    for name, value in task.latent.items():
        setattr(env.unwrapped, name, float(value))
    chances = draw_uniform(task.salt, 2, len(actions) + 1, 1, 1, dtype=torch.float64)
    seen, _ = env.reset(seed=int(chances[episode, 0, 0, 0] * 2**23))
    observations, rewards, over = [], [], False
    for action in actions:
        observations.append(list(map(float, seen)))
        if over:
            rewards.append(0.0)
            continue
        seen, reward, over, _, _ = env.step(action)
        rewards.append(float(reward))
    return observations, rewards


@pytest.mark.integration  # for which Gymnasium is installed
@needs_gymnasium
@pytest.mark.parametrize("world", ["env=Pendulum-v1 hidden={m:[0.5,2]}", "env=CartPole-v1 hidden={length:[0.3,1]}"])
def test_it_fulfils_what_every_world_must(world: str) -> None:
    check_dataset("gymnasium", "dataset.horizon=3", *(f"dataset.{word}" for word in world.split()))


@pytest.mark.integration
@needs_gymnasium
def test_a_pendulums_episodes_are_those_of_gymnasium_with_its_hidden_parameters() -> None:
    """An action of 1 is the upper bound, a torque of 2."""
    actions, task = [0.5, -1.0, 0.25, 3.0, 0.0], trial(m=0.7, l=1.3)
    following = iter(2 * actions)
    played = roll_out(PENDULUM, task, Reflex(lambda seen, _: torch.full((1, 1), next(following)).double()), 2, 1)
    for episode in range(2):
        torques = [torch.tensor([2 * min(1.0, action)]).numpy() for action in actions]
        observations, rewards = play_plainly("Pendulum-v1", task, episode, torques)
        torch.testing.assert_close(played.observation[episode, :, 0], torch.tensor(observations).double())
        assert played.reward[episode, :, 0].tolist() == pytest.approx(rewards)


@pytest.mark.integration
@needs_gymnasium
def test_a_pole_that_has_fallen_pays_nothing_more() -> None:
    task = trial(force_mag=12.0)
    played = roll_out(CART, task, Reflex(lambda seen, chance: torch.ones(1, dtype=torch.long)), 2, 1)
    _, rewards = play_plainly("CartPole-v1", task, 1, [1] * 40)
    assert 0 < sum(rewards) < 40
    assert played.reward[1, :, 0].tolist() == rewards


def draw(*size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Hidden parameters, seeds and 4 actions."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.rand(*size, 1, generator=generator, dtype=torch.float64) + 0.5
    seed = torch.randint(100, size, generator=generator).double()
    return hidden, seed, torch.rand(*size, 4, 1, generator=generator, dtype=torch.float64) * 2 - 1


@pytest.mark.integration
@needs_gymnasium
def test_answers_do_not_depend_on_what_was_asked_before() -> None:
    """The last action first, then all in order, backwards, twice in one call, and by vmap."""
    hidden, seed, actions = draw(3)

    def ask(step: int, rows: Tensor) -> Tensor:
        steps = torch.full((len(rows),), step)
        answers: Tensor = play_gymnasium(hidden[rows], seed[rows], actions[rows], steps, "Pendulum-v1", "m")
        return answers

    every = torch.arange(3)
    last = ask(4, every)
    forth = [ask(step, every) for step in range(5)]
    back = [ask(step, every.flip(0)).flip(0) for step in reversed(range(5))][::-1]
    assert torch.equal(forth[4], last)
    for one, other in zip(forth, back):
        assert torch.equal(one, other)
        assert not torch.equal(one[0], one[1])
    assert torch.equal(ask(2, torch.tensor([1, 1, 0])), forth[2][[1, 1, 0]])
    batched = vmap(play_gymnasium, in_dims=(0, 0, 0, None, None, None))(
        hidden[:, None], seed[:, None], actions[:, None], torch.tensor([3]), "Pendulum-v1", "m"
    )
    assert torch.equal(batched[:, 0], forth[3])


@pytest.mark.integration
@needs_gymnasium
def test_what_one_world_hides_does_not_stay_in_another() -> None:
    hidden, seed, actions = draw(3)
    fresh = play_gymnasium(hidden, seed, actions, torch.full((3,), 4), "Pendulum-v1", "l")
    for _ in range(2):  # of which the second leaves environments that nobody uses
        play_gymnasium(7 * hidden, seed, actions, torch.full((3,), 4), "Pendulum-v1", "m")
    assert torch.equal(play_gymnasium(hidden, seed, actions, torch.full((3,), 4), "Pendulum-v1", "l"), fresh)


@pytest.mark.integration
@needs_gymnasium
@pytest.mark.parametrize(
    ("env", "hidden", "told"),
    [
        (None, {"m": [1.0, 2.0]}, r"dataset\.env is null: name an environment of Gymnasium"),
        ("Pendulum-v7", {"m": [1.0, 2.0]}, r"dataset\.env is Pendulum-v7, which Gymnasium cannot make: .*v1"),
        ("Pendulum-v1", None, r"dataset\.hidden names no parameter"),
        ("Pendulum-v1", {"lenght": [1.0, 2.0]}, r"dataset\.hidden has lenght, which is no number of .*choose from .*m"),
        ("Pendulum-v1", {"m": [2.0, 1.0]}, r"dataset\.hidden\.m is \[2\.0, 1\.0\]: it must be the least and"),
    ],
)
def test_what_cannot_be_a_world_is_refused(env: str | None, hidden: dict[str, list[float]] | None, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Gymnasium(env, hidden, 5, CPU).prepare()


@pytest.mark.skipif(THERE, reason="Gymnasium is there")
def test_without_gymnasium_it_says_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"dataset=gymnasium needs a package .*pip install 'metarun\[gymnasium\]'"):
        PENDULUM.prepare()
