"""Random Markov decision processes with few states."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.core.control import Reflex
from metarun.core.objectives import one_hot
from metarun.core.types import Agent, Params, Seen
from metarun.datasets.sampling.trials import Simulated


@register("dataset", "tabular", DatasetTraits(kind="control", metric="total_return", rules=("optimum", "random")))
@dataclass(frozen=True)
class Tabular(Simulated):
    """States and choices with rewards and transitions drawn for every task (Duan et al. 2016, section 3.2).

    Mean rewards are from N(1, 1), rewards from N(mean, 1), transitions from a flat Dirichlet distribution. An episode
    begins in state 0.
    """

    states: Count
    choices: Count
    horizon: Count
    device: torch.device

    discrete = True
    chances = 2

    def __post_init__(self) -> None:
        if self.device.type == "mps":
            raise ConfigError("dataset=tabular draws rewards by torch.special.ndtri, which device=mps lacks: use cpu")

    @property
    def observed(self) -> int:
        return self.states

    @property
    def actions(self) -> int:
        return self.choices

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        """Mean rewards [T, S, A], and the cumulated probabilities of the next state [T, S, A, S]."""
        size, device = (tasks, self.states, self.choices), generator.device
        reward = 1 + torch.randn(size, generator=generator, device=device)
        weights = torch.empty(*size, self.states, device=device).exponential_(generator=generator)
        return {"reward": reward, "cumulated": weights.cumsum(-1) / weights.sum(-1, keepdim=True)}

    def reset(self, latent: Params, chance: Tensor) -> Tensor:
        return torch.zeros_like(chance[:, 0], dtype=torch.long)

    def observe(self, latent: Params, state: Tensor) -> Tensor:
        return one_hot(state, self.states).to(latent["reward"].dtype)

    def step(self, latent: Params, state: Tensor, action: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
        reward = latent["reward"][state, action] + torch.special.ndtri(chance[:, 0])
        below = latent["cumulated"][state, action] < chance[:, 1:]
        return below.sum(-1).clamp(max=self.states - 1), reward  # of rounded sums

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """The best play for who knows the task, or any choice."""
        if name == "optimum":
            return Planner(best_choices(latent, self.horizon))
        return Reflex(lambda observation, chance: (chance[:, 0] * self.choices).long(), chances=1)


@dataclass(frozen=True)
class Planner:
    """An agent that follows a table of choices [H, S]; its memory is the number of steps since an episode began."""

    table: Tensor
    chances = 0

    def start(self, trajectories: int) -> Tensor:
        return self.table.new_zeros(trajectories)

    def act(self, memory: Tensor, seen: Seen, chance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        step = torch.where(seen.begins > 0, 0, memory)
        chosen = self.table[step, seen.observation.argmax(-1)]
        return step + 1, chosen, chosen


def best_choices(latent: Params, horizon: int) -> Tensor:
    """[H, S], by value iteration from the last step back."""
    chances = latent["cumulated"].diff(dim=-1, prepend=torch.zeros_like(latent["cumulated"][..., :1]))
    value, choices = torch.zeros_like(latent["reward"][:, 0]), []
    for _ in range(horizon):
        worth = latent["reward"] + chances @ value  # [S, A]
        value = worth.amax(-1)
        choices.append(worth.argmax(-1))
    return torch.stack(choices[::-1])
