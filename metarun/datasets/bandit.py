"""Bandits: some arms, each of which pays 1 with a probability of its own, and else 0."""

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count, NonNegative
from metarun.config.traits import DatasetTraits
from metarun.core.control import Reflex
from metarun.core.types import Agent, Params, Seen
from metarun.datasets.sampling.trials import Simulated

LEVELS = 500  # of sure payment, among which a Gittins index is found
AT_ONCE = 20  # of these: for 500 pulls they take 20 MB


@register(
    "dataset",
    "bandit",
    DatasetTraits(
        kind="control",
        metric="total_return",
        rules=("known", "gittins", "ucb1", "thompson", "greedy", "random"),
    ),
)
@dataclass(frozen=True)
class Bandit(Simulated):
    """Arms that pay 1 with probabilities from a uniform distribution (Duan et al. 2016, section 3.1).

    One pull is one episode. There is nothing to observe but a constant.
    """

    arms: Count
    bonus: NonNegative  # of the rule ucb1
    device: torch.device

    observed = 1
    discrete = True
    horizon = 1
    chances = 1

    @property
    def actions(self) -> int:
        return self.arms

    def latent(self, tasks: int, generator: torch.Generator) -> Params:
        return {"pays": torch.rand(tasks, self.arms, generator=generator, device=generator.device)}

    def reset(self, latent: Params, chance: Tensor) -> Tensor:
        return torch.ones_like(chance)

    def observe(self, latent: Params, state: Tensor) -> Tensor:
        return state

    def step(self, latent: Params, state: Tensor, action: Tensor, chance: Tensor) -> tuple[Tensor, Tensor]:
        return state, (chance[:, 0] < latent["pays"][action]).to(chance.dtype)

    def rule(self, name: str, latent: Params, episodes: int) -> Agent:
        """The best arm, for who knows it; the arm of the largest Gittins index with so many pulls to go; UCB1, whose
        bonus sqrt(2 ln t / pulls) is scaled; of the largest draw from the posterior (Thompson); of the largest
        posterior mean; or any.
        """
        if name == "known":
            return Reflex(lambda observation, chance: latent["pays"].argmax(-1).expand(len(observation)))
        return Counter(name, self.arms, episodes, self.bonus, latent["pays"])


@dataclass(frozen=True)
class Counter:
    """An agent that knows each arm's payments and blanks so far."""

    rule: str
    arms: int
    pulls: int  # in the whole trial
    bonus: float
    like: Tensor

    @property
    def chances(self) -> int:
        return {"thompson": 2 * self.arms + self.pulls, "random": self.arms}.get(self.rule, 0)

    def start(self, trajectories: int) -> tuple[Tensor, Tensor]:
        none = self.like.new_zeros(trajectories, self.arms)
        return none, none

    def act(
        self, memory: tuple[Tensor, Tensor], seen: Seen, chance: Tensor
    ) -> tuple[tuple[Tensor, Tensor], Tensor, Tensor]:
        paid, blank = memory
        paid = paid + seen.action * seen.reward[:, None]
        blank = blank + seen.action * (1 - seen.reward[:, None])
        index = self.index(paid, blank, chance)
        chosen = index.argmax(-1)
        return (paid, blank), chosen, index

    def index(self, paid: Tensor, blank: Tensor, chance: Tensor) -> Tensor:
        """paid, blank: [P, k], chance: [P, chances] -> what the arms are compared by: [P, k]."""
        pulled = (paid + blank).sum(-1, keepdim=True)  # [P, 1]
        if self.rule == "gittins":
            left = (self.pulls - pulled).long().expand_as(paid)
            return gittins_indices(self.pulls, paid.device).to(paid.dtype)[left, paid.long(), blank.long()]
        if self.rule == "thompson":  # of a + b waiting times, the first a take a share of Beta(a, b)
            ends = F.pad(torch.stack([paid + 1, blank + 1], -1).flatten(-2).cumsum(-1).long(), (1, 0))  # [P, 2 k + 1]
            times = F.pad(-chance.log().cumsum(-1), (1, 0)).gather(-1, ends).diff(dim=-1)
            wins, losses = times[..., ::2], times[..., 1::2]
            return wins / (wins + losses)
        if self.rule == "ucb1":
            times = paid + blank
            width = self.bonus * (2 * pulled.clamp(min=1).log() / times.clamp(min=1)).sqrt()
            return torch.where(times == 0, torch.inf, paid / times.clamp(min=1) + width)
        return chance if self.rule == "random" else (paid + 1) / (paid + blank + 2)


@cache
def gittins_indices(pulls: int, device: torch.device) -> Tensor:
    """[left, paid, blank]: the Gittins index of an arm, to 1 / LEVELS, with up to `pulls` pulls left.

    It is the largest sure payment per pull for which one would still pull the arm at least once more, if after that one
    may go over to the sure payment for good.
    """
    blank = torch.arange(pulls + 1.0, device=device)
    paid = blank[:, None]
    mean = (paid + 1) / (paid + blank + 2)
    found = mean.new_zeros(pulls + 1, pulls + 1, pulls + 1)
    for sure in ((torch.arange(LEVELS, device=device) + 0.5) / LEVELS)[:, None, None].split(AT_ONCE):
        excess = mean - sure
        gain = torch.zeros_like(excess)  # over the sure payment, by the best play of what is left
        for left in range(1, pulls + 1):
            n = pulls - left + 1  # an arm has at most n - 1 payments, or blanks, by then
            then = torch.lerp(gain[:, :n, 1 : n + 1], gain[:, 1 : n + 1, :n], mean[:n, :n])
            gain = (then + excess[:, :n, :n]).clamp_(min=0)
            found[left, :n, :n] += gain.sign().sum(0)
    return found / LEVELS
