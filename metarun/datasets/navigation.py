"""A point in the plane that has to find a goal it cannot see."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.core.control import Reflex
from metarun.core.types import Agent, Params
from metarun.datasets.sampling.trials import Simulated

LONGEST = 0.1  # move per step, along each axis
NEAR = 0.01  # to the goal, along each axis: the episode ends


@register("dataset", "navigation", DatasetTraits(kind="control", rules=("straight",)))
@dataclass(frozen=True)
class Navigation(Simulated):
    """A point that moves from the middle of a square towards a hidden goal (Finn et al. 2017, section 5.3).

    The goal is uniform in [-0.5, 0.5]^2, an action is a move of at most 0.1 along each axis, and the reward is minus
    the distance to the goal after it, as in the authors' code (the paper's text says its square). As there, an episode
    ends within 0.01 of the goal along each axis: the point stays, and nothing more is paid.
    """

    horizon: Count
    device: torch.device

    observed = 2
    actions = 2
    discrete = False
    chances = 0

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        return {"goal": torch.rand(tasks, 2, generator=generator, device=generator.device) - 0.5}

    def reset(self, latent: Params, chance: Tensor) -> Tensor:
        """The position [P, 2]."""
        return latent["goal"].new_zeros(len(chance), 2)

    def observe(self, latent: Params, state: Tensor) -> Tensor:
        return state

    def step(self, latent: Params, state: Tensor, action: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
        ended = ((state - latent["goal"]).abs() < NEAR).all(-1)
        state = torch.where(ended[:, None], state, state + action.clamp(-LONGEST, LONGEST))
        return state, torch.where(ended, 0.0, -(state - latent["goal"]).norm(dim=-1))

    def draw(self, axes: Any, latent: Params, states: Tensor) -> None:
        """The way from the middle, and the goal."""
        axes.plot(*states.T.numpy(), marker=".")
        axes.plot(*latent["goal"].numpy(), "r*", markersize=12)
        axes.set(xlim=(-0.75, 0.75), ylim=(-0.75, 0.75))

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """Straight to the goal."""
        return Reflex(lambda observation, chance: latent["goal"] - observation)
