"""Control: tasks in which a policy acts in a world. All chance in a rollout is hashed from the task's salt, so that a
rollout is a pure function of one task.

Shape letters: `E` episodes, `H` horizon, `P` trajectories side by side, `O` observed values, `A` actions.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.traits import Metric
from metarun.core.objectives import one_hot
from metarun.core.seeding import draw_uniform
from metarun.core.types import Agent, Metrics, Params, Seen, Trial, World

FLOOR = 1e-2  # of the standard deviation of actions
RIDGE, EPSILON = 1e-4, 1e-6  # of the linear baseline: in float32 the features must not be singular


class Rollout(NamedTuple):
    """What happened in all episodes, step by step."""

    observation: Tensor  # [E, H, P, O]
    action: Tensor  # [E, H, P], or [E, H, P, A] of numbers
    reward: Tensor  # [E, H, P]
    record: Tensor  # [E, H, P, ...], of the agent

    @property
    def returns(self) -> Tensor:
        """[E, P]: the sum of an episode's rewards."""
        return self.reward.sum(1)


def roll_out(world: World, trial: Trial, agent: Agent, episodes: int, trajectories: int, purpose: int = 0) -> Rollout:
    """Let `agent` act in one task for some episodes, on several trajectories that know nothing of each other.

    Another `purpose` gives other chances. Differentiable where world and agent are.
    """
    like = next(iter(trial.latent.values()))
    size = (episodes, world.horizon + 1, trajectories, world.chances + agent.chances)
    chances = draw_uniform(trial.salt, *size, purpose=purpose, dtype=like.dtype)
    action, reward = like.new_zeros(trajectories, world.actions), like.new_zeros(trajectories)
    memory, steps = agent.start(trajectories), []
    for episode in range(episodes):
        state = world.reset(trial.latent, chances[episode, 0, :, : world.chances])
        for step in range(world.horizon):
            begins = torch.full_like(reward, float(step == 0))
            seen = Seen(world.observe(trial.latent, state), action, reward, begins)
            theirs, ours = chances[episode, step + 1].split([world.chances, agent.chances], dim=-1)
            memory, chosen, record = agent.act(memory, seen, ours)
            state, reward = world.step(trial.latent, state, chosen, theirs)
            action = one_hot(chosen, world.actions).to(like.dtype) if world.discrete else chosen
            steps.append((seen.observation, chosen, reward, record))
    fields = (torch.stack(field).unflatten(0, (episodes, world.horizon)) for field in zip(*steps))
    return Rollout(*fields)


@dataclass(frozen=True)
class Reflex:
    """An agent without memory: `react` gives actions for observations [P, O] and uniform numbers [P, chances]."""

    react: Callable[[Tensor, Tensor], Tensor]
    chances: int = 0

    def start(self, trajectories: int) -> tuple[()]:
        return ()

    def act(self, memory: tuple[()], seen: Seen, chance: Tensor) -> tuple[tuple[()], Tensor, Tensor]:
        chosen = self.react(seen.observation, chance)
        return memory, chosen, chosen


@dataclass(frozen=True)
class Choices:
    """A policy over actions 0 .. A - 1, whose outputs [..., A] are logits."""

    actions: int
    chances = 1

    def draw(self) -> Params:
        """What is learned beside a network's outputs: nothing."""
        return {}

    def complete(self, outputs: Tensor, params: Params) -> Tensor:
        """The network's outputs as they are."""
        return outputs

    def act(self, outputs: Tensor, chance: Tensor, greedy: bool = False) -> Tensor:
        """chance: [..., 1] uniform numbers -> actions [...]; the likeliest if `greedy`."""
        if greedy:
            return outputs.argmax(-1)
        return (outputs.softmax(-1).cumsum(-1) < chance).sum(-1).clamp(max=self.actions - 1)  # of rounded sums

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """action: [...] -> [...]."""
        return outputs.log_softmax(-1).gather(-1, action[..., None])[..., 0]

    def entropy(self, outputs: Tensor) -> Tensor:
        """[..., A] -> [...]."""
        log = outputs.log_softmax(-1)
        return -(log.exp() * log).sum(-1)


@dataclass(frozen=True)
class Gaussian:
    """A policy over A numbers, whose outputs [..., 2 A] are means and logarithms of standard deviations.

    The deviations are learned, equal in all states, and not below FLOOR: densities have slopes of 1 / deviation^2.
    """

    actions: int
    start: float  # deviation at first

    @property
    def chances(self) -> int:
        return self.actions

    def draw(self) -> Params:
        """What is learned beside a network's outputs: the logarithms of the deviations [A]."""
        return {"log_std": torch.full((self.actions,), self.start).log()}

    def complete(self, outputs: Tensor, params: Params) -> Tensor:
        """Join a network's outputs, the means [..., A], and the deviations: [..., 2 A]."""
        log_std = params["log_std"].clamp(min=math.log(FLOOR))
        return torch.cat([outputs, log_std.expand_as(outputs)], -1)

    def act(self, outputs: Tensor, chance: Tensor, greedy: bool = False) -> Tensor:
        """chance: [..., A] uniform numbers -> actions [..., A], with a gradient; the means if `greedy`."""
        mean, log_std = outputs.chunk(2, -1)
        return mean if greedy else mean + log_std.exp() * torch.special.ndtri(chance)

    def log_prob(self, outputs: Tensor, action: Tensor) -> Tensor:
        """action: [..., A] -> [...]."""
        mean, log_std = outputs.chunk(2, -1)
        deviations = (action - mean) / log_std.exp()
        return -(deviations.square() / 2 + log_std + math.log(2 * math.pi) / 2).sum(-1)

    def entropy(self, outputs: Tensor) -> Tensor:
        """[..., 2 A] -> [...]."""
        log_std = outputs.chunk(2, -1)[1]
        return (log_std + math.log(2 * math.pi * math.e) / 2).sum(-1)


Policy = Choices | Gaussian


def make_policy(world: World, deviation: float) -> Policy:
    """The policy for a world's actions, of which numbers have this standard deviation at first."""
    return Choices(world.actions) if world.discrete else Gaussian(world.actions, deviation)


@dataclass(frozen=True)
class Player:
    """A policy as an agent, whose outputs are recorded."""

    policy: Policy
    read: Callable[[Any, Seen], tuple[Any, Tensor]]  # memory and what is seen -> memory and outputs
    greedy: bool
    path: bool = False  # whether actions pass gradients on
    begin: Callable[[int], Any] = lambda trajectories: ()  # the memory before the first step

    @property
    def chances(self) -> int:
        return self.policy.chances

    def start(self, trajectories: int) -> Any:
        return self.begin(trajectories)

    def act(self, memory: Any, seen: Seen, chance: Tensor) -> tuple[Any, Tensor, Tensor]:
        memory, outputs = self.read(memory, seen)
        action = self.policy.act(outputs, chance, self.greedy)
        return memory, action if self.path else action.detach(), outputs


def measure_returns(returns: Tensor) -> Metrics:
    """The metrics of the episodes that count, as means over the trajectories. returns: [E, P]."""
    by_episode = returns.mean(1).detach()
    return {
        "return": mean_return(by_episode),
        "total_return": total_return(by_episode),
        "return_by_episode": by_episode,
    }


@register("metric", "return", Metric(higher_is_better=True, worst=-1e9, tolerance=0.05, relative=True, decimals=3))
def mean_return(returns: Tensor) -> Tensor:
    """The return of an episode, mean over those that count. returns: [E]."""
    return returns.mean()


@register(
    "metric", "total_return", Metric(higher_is_better=True, worst=-1e9, tolerance=0.02, relative=True, decimals=2)
)
def total_return(returns: Tensor) -> Tensor:
    """The return of all episodes that count together. returns: [E]."""
    return returns.sum()


def sum_ahead(rewards: Tensor, discount: float) -> Tensor:
    """The discounted sum of the rewards from each step on: [n, P] -> [n, P]."""
    steps = torch.arange(len(rewards), device=rewards.device)
    ahead = steps - steps[:, None]  # [n, n], row t: how far the others are ahead of t
    weights = torch.where(ahead >= 0, discount ** ahead.clamp(min=0).to(rewards.dtype), 0.0)
    return weights @ rewards


def compare_trials(returns: Tensor) -> Tensor:
    """Subtract the mean of the other trajectories: [..., P] -> [..., P]. Unbiased, because they are independent."""
    count = returns.shape[-1]
    return (returns - returns.mean(-1, keepdim=True)) * count / (count - 1)


def linear_baseline(observation: Tensor, ahead: Tensor) -> Tensor:
    """The least squares fit of `ahead` by the observations, their squares and powers of time (Duan et al. 2016,
    https://arxiv.org/abs/1604.06778, section 5): observation [H, P, O], ahead [H, P] -> [H, P].

    Features are scaled to length 1, and a little ridge keeps those apart that are nearly equal.
    """
    time = torch.linspace(0, 1, len(ahead), dtype=ahead.dtype, device=ahead.device)[:, None, None]
    powers = [(time**power).expand(*ahead.shape, 1) for power in range(4)]
    features = torch.cat([observation, observation.square(), *powers], -1).flatten(0, 1)  # [H * P, F]
    features = features / (features.square().mean(0).sqrt() + EPSILON)
    gram = features.T @ features / len(features)
    ridge = RIDGE * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    weights: Tensor = torch.linalg.solve_ex(gram + ridge, features.T @ ahead.flatten() / len(features)).result
    fitted: Tensor = features @ weights
    return fitted.view_as(ahead)
