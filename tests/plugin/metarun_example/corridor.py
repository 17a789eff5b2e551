"""A corridor with a treasure at one of its ends: an example of a world in a package of its own."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.core.control import Reflex
from metarun.core.types import Agent, Params
from metarun.datasets.sampling.trials import Simulated


@register("dataset", "corridor", DatasetTraits(kind="control", rules=("told",)))
@dataclass(frozen=True)
class Corridor(Simulated):
    """A corridor of some steps in either direction, whose treasure is on the left or on the right."""

    steps: Count  # from the middle to an end
    device: torch.device

    observed, actions, discrete, chances = 1, 2, True, 0

    @property
    def horizon(self) -> int:
        return 2 * self.steps

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Drawn for every task: side [T], -1 or 1."""
        return {"side": torch.randint(2, (tasks,), generator=generator, device=generator.device) * 2.0 - 1}

    def reset(self, latent: Params, chance: Tensor) -> Tensor:
        """The place [P], in the middle; `chance` [P, chances] would be all randomness there is."""
        return latent["side"].new_zeros(len(chance))

    def observe(self, latent: Params, state: Tensor) -> Tensor:
        return state[:, None]

    def step(self, latent: Params, state: Tensor, action: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
        """action: [P], 0 to the left and 1 to the right. Each step at the treasure pays 1."""
        state = (state + 2 * action - 1).clamp(-self.steps, self.steps)
        return state, (state == latent["side"] * self.steps).to(state.dtype)

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """To the treasure, for who was told where it is."""
        return Reflex(lambda observation, chance: (latent["side"] > 0).long().expand(len(observation)))
