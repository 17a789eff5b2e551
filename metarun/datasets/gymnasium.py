"""Environments of Gymnasium: an adapter that makes pure functions of objects that change. Needs metarun[gymnasium].

A state is a past: the seed of the episode, and all actions in it so far. An operator answers what comes of it. It keeps
the environments that stand at the pasts it was asked for last, so that one more action is one more step; any other past
is played again from its beginning. So answers do not depend on what was asked before, and episodes that are played in
order cost their own steps. All of it is on the CPU, one environment after another, and has no gradient.
"""

import importlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.config.errors import ConfigError, offer
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.core.batch import batch_rows
from metarun.core.control import Reflex
from metarun.core.types import Agent, Params
from metarun.datasets.sampling.trials import Simulated

KEPT = 4096  # environments that wait for their next action
SEEDS = 2**23  # of episodes: as many as there are uniform numbers


class Stage:
    """Environments of one kind, of which the same parameters are hidden, and the pasts at which they stand."""

    def __init__(self, name: str, names: tuple[str, ...]) -> None:
        """Raises ConfigError if there is no such environment, or if a policy cannot act in it."""
        try:
            self.gymnasium = importlib.import_module("gymnasium")
        except ImportError as error:
            raise ConfigError(
                f"dataset=gymnasium needs a package that is not there ({error}): pip install 'metarun[gymnasium]'"
            ) from error
        self.name, self.names = name, names
        self.idle, self.standing = [], OrderedDict[bytes, Any]()
        try:
            env = self.take()
        except (self.gymnasium.error.Error, ImportError) as error:
            raise ConfigError(f"dataset.env is {name}, which Gymnasium cannot make: {error}") from error
        self.numbers = {key for key, value in vars(env.unwrapped).items() if type(value) in (int, float)}
        self.space, spaces = env.action_space, self.gymnasium.spaces
        self.discrete = isinstance(self.space, spaces.Discrete)
        if not self.discrete and not (isinstance(self.space, spaces.Box) and len(self.space.shape) == 1):
            raise ConfigError(
                f"dataset.env is {name}, whose actions are {self.space}: a policy needs Discrete, or Box with one axis"
            )
        self.actions = int(self.space.n if self.discrete else self.space.shape[0])
        self.observed = int(spaces.flatdim(env.observation_space))
        self.idle.append(env)

    def take(self) -> Any:
        """An environment that nobody uses."""
        return self.idle.pop() if self.idle else self.gymnasium.make(self.name, disable_env_checker=True)

    def begin(self, hidden: np.ndarray, seed: int) -> tuple[Any, np.ndarray]:
        env = self.take()
        for name, value in zip(self.names, hidden.tolist()):
            setattr(env.unwrapped, name, value)
        return env, self.answer(env, env.reset(seed=seed)[0], 0.0, False)

    def step(self, env: Any, action: np.ndarray) -> np.ndarray:
        """What comes of one more action: the observation, the reward, and 1 if the episode is over."""
        if self.discrete:
            chosen: Any = int(action[0]) + int(self.space.start)
        else:
            low, high, action = self.space.low, self.space.high, action.clip(-1, 1)
            bounded = np.isfinite(low) & np.isfinite(high)
            chosen = np.where(bounded, low + (action + 1) / 2 * (high - low), action).astype(self.space.dtype)
        observation, reward, terminated, truncated, _ = env.step(chosen)
        return self.answer(env, observation, float(reward), terminated or truncated)

    def answer(self, env: Any, observation: Any, reward: float, over: bool) -> np.ndarray:
        return np.append(self.gymnasium.spaces.flatten(env.observation_space, observation), (reward, over))

    def play(self, hidden: np.ndarray, seed: int, actions: np.ndarray) -> np.ndarray:
        """What comes of the last of the actions [t, A] in the episode of this seed, with these hidden parameters."""
        episode = repr((hidden.tolist(), seed)).encode()
        env = self.standing.pop(episode + actions[:-1].tobytes(), None) if len(actions) else None
        if env is None:
            env, answer = self.begin(hidden, seed)
            for action in actions[:-1]:
                self.step(env, action)
        if len(actions):
            answer = self.step(env, actions[-1])
        if answer[-1]:
            self.idle.append(env)
        else:
            self.keep(episode + actions.tobytes(), env)
        return answer

    def keep(self, past: bytes, env: Any) -> None:
        """Keep the environment for the next action; the one that has waited longest makes room."""
        if (twin := self.standing.pop(past, None)) is not None:
            self.idle.append(twin)
        self.standing[past] = env
        if len(self.standing) > KEPT:
            self.idle.append(self.standing.popitem(last=False)[1])


@cache
def find_stage(name: str, names: str) -> Stage:
    """The only stage for environments of this name with these hidden parameters, which commas divide."""
    return Stage(name, tuple(names.split(",")))


@torch.library.custom_op("metarun::play_gymnasium", mutates_args=())
def play_gymnasium(hidden: Tensor, seed: Tensor, actions: Tensor, steps: Tensor, env: str, names: str) -> Tensor:
    """What comes of the first actions of some episodes, which know nothing of each other.

    hidden: [n, K] in the order of `names`, which commas divide; seed: [n]; actions: [n, H, A]; steps: [n], how many of
    them are taken, or -1 where nobody wants to know. Returns [n, O + 2]: observation, reward of the last action, and 1
    if the episode is over.
    """
    stage = find_stage(env, names)
    rows = zip(*(x.detach().cpu().double().numpy() for x in (hidden, seed, actions, steps)))
    nothing = np.zeros(stage.observed + 2)
    answers = [stage.play(h, int(s), a[: int(t)]) if t >= 0 else nothing for h, s, a, t in rows]
    return torch.from_numpy(np.stack(answers)).to(hidden)


@play_gymnasium.register_fake
def _(hidden: Tensor, seed: Tensor, actions: Tensor, steps: Tensor, env: str, names: str) -> Tensor:
    return hidden.new_empty(len(hidden), find_stage(env, names).observed + 2)


batch_rows(play_gymnasium)


class Past(NamedTuple):
    """An episode so far, and what came of it."""

    seed: Tensor  # [P]
    actions: Tensor  # [P, H, A], or [P, H, 1] of choices
    steps: Tensor  # [P] taken so far
    seen: Tensor  # [P, O]
    over: Tensor  # [P] whether


@register("dataset", "gymnasium", DatasetTraits(kind="control", rules=("random",)))
@dataclass(frozen=True)
class Gymnasium(Simulated):
    """An environment of Gymnasium, of which some parameters are hidden and drawn for every task.

    These are attributes of the environment, which are set before each episode begins: an environment that has computed
    others from them keeps those. Actions of numbers reach from one bound (-1) to the other (1). What follows the end of
    an episode pays nothing.
    """

    env: str | None
    hidden: dict[str, list[float]] | None  # name -> least and largest value
    horizon: Count
    device: torch.device

    chances = 1

    def prepare(self) -> None:
        """Make the environment. Raises ConfigError if that fails or if it has no such parameters."""
        if not self.hidden:
            raise ConfigError("dataset.hidden names no parameter: give one and its limits, for example {g: [5, 15]}")
        for name, limits in self.limits.items():
            if name not in self.stage.numbers:
                known = offer(name, sorted(self.stage.numbers))
                raise ConfigError(f"dataset.hidden has {name}, which is no number of {self.env}: {known}")
            if len(limits) != 2 or limits[0] > limits[1]:
                raise ConfigError(f"dataset.hidden.{name} is {limits}: it must be the least and the largest value")

    @property
    def limits(self) -> dict[str, list[float]]:
        return self.hidden or {}

    @property
    def stage(self) -> Stage:
        if self.env is None:
            raise ConfigError("dataset.env is null: name an environment of Gymnasium, for example Pendulum-v1")
        return find_stage(self.env, ",".join(self.limits))

    @property
    def observed(self) -> int:
        return self.stage.observed

    @property
    def actions(self) -> int:
        return self.stage.actions

    @property
    def discrete(self) -> bool:
        return self.stage.discrete

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Drawn for every task, [T] each: the hidden parameters, uniform within their limits."""
        u = torch.rand(len(self.limits), tasks, generator=generator, device=generator.device)
        return {name: low + (high - low) * row for (name, (low, high)), row in zip(self.limits.items(), u)}

    def play(self, latent: Params, seed: Tensor, actions: Tensor, steps: Tensor) -> Tensor:
        """[P, O + 2], of the operator."""
        hidden = torch.stack([latent[name] for name in self.limits]).expand(len(seed), -1)
        answer: Tensor = play_gymnasium(hidden, seed, actions, steps, str(self.env), ",".join(self.limits))
        return answer

    def reset(self, latent: Params, chance: Tensor) -> Past:
        """The beginning of an episode, whose seed is drawn."""
        seed, like = (chance[:, 0] * SEEDS).floor(), next(iter(latent.values()))
        actions = like.new_zeros(len(seed), self.horizon, 1 if self.discrete else self.actions)
        steps = torch.zeros_like(seed)
        seen = self.play(latent, seed, actions, steps)[:, : self.observed]
        return Past(seed, actions, steps, seen, steps > 0)

    def observe(self, latent: Params, state: Past) -> Tensor:
        return state.seen

    def step(self, latent: Params, state: Past, action: Tensor, chance: Tensor) -> tuple[Past, Tensor]:
        """action: [P] choices, or [P, A] numbers."""
        taken = (action[:, None] if self.discrete else action)[:, None].to(state.actions.dtype)
        now = torch.arange(self.horizon, device=action.device) == state.steps[:, None]
        actions, steps = torch.where(now[..., None], taken, state.actions), state.steps + 1
        answer = self.play(latent, state.seed, actions, torch.where(state.over, -1, steps))
        seen = torch.where(state.over[:, None], state.seen, answer[:, : self.observed])
        return Past(state.seed, actions, steps, seen, state.over | (answer[:, -1] > 0)), answer[:, -2]

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """Any action."""
        if self.discrete:
            return Reflex(lambda observation, chance: (chance[:, 0] * self.actions).long(), chances=1)
        return Reflex(lambda observation, chance: 2 * chance - 1, chances=self.actions)
