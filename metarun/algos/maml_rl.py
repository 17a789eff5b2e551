"""MAML for policies: an initialisation from which a few policy gradients solve a new task.

Finn, Abbeel, Levine, "Model-Agnostic Meta-Learning for Fast Adaptation of Deep Networks", ICML 2017,
https://arxiv.org/abs/1703.03400, section 4.2 and algorithm 3. With `adapted: head` it is ANIL (Raghu et al. 2020,
https://arxiv.org/abs/1909.09157): the last layer alone is adapted. With `adapted: context` it is CAVIA (Zintgraf et al.
2019, https://arxiv.org/abs/1810.03642, section 4.3): a context vector is, which starts at 0 and enters the first layer.

Each inner step plays `shots` new episodes, and the outer objective plays `queries` episodes with the adapted policy.
`curvature` says how the meta-gradient is estimated:

- `ratio`: the inner objective is the mean of pi / stop(pi) times the advantage (Rothfuss et al. 2019,
  https://arxiv.org/abs/1810.06784). Its second derivative leaves out how one action changes the worth of later ones. As
  in the authors' code, that the episodes of an inner step depend on theta too is left out: that term is mostly noise.
- `path`: actions are differentiable in the policy and the world in the action, so the gradient of the return itself is
  taken, and nothing is left out. It needs actions that are numbers, and a differentiable world.

Unlike the authors we optimise the outer objective without TRPO, by one step from each batch; the advantages of inner
steps are not divided by their standard deviation, which would make all steps equally long; and the deviation of actions
is not adapted: it is wide while the policy explores, and another, learned one where episodes count. docs/agents.md has
what each changes.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from metarun.algos.cavia import draw_maps, modulate, require_place
from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Fraction, Positive, Whole
from metarun.config.traits import Traits
from metarun.core.control import (
    Player,
    Policy,
    Rollout,
    linear_baseline,
    make_policy,
    measure_returns,
    roll_out,
    sum_ahead,
)
from metarun.core.inner import draw_networks, forward, inner_step, last, own_generator, select
from metarun.core.types import Backbone, Metrics, Seen, TaskSpec, Theta, Trial, World

COUNTED = -1  # the purpose of the chances of episodes that count; those of inner step j have the purpose j


@register("algo", "maml_rl", Traits(kinds=("control",), exact=False))
@dataclass(eq=False)
class MAMLRL:
    """Learn a policy from which a few policy gradients solve a new task (Finn et al. 2017, section 5.3)."""

    inner_lr: Positive | list[Positive]  # alpha, or that of each step; the last one counts for all further steps
    inner_steps: Whole
    first_order: bool
    curvature: Literal["ratio", "path"]
    adapted: Literal["all", "head", "context"]  # MAML, ANIL, CAVIA
    context_size: Count
    discount: Fraction
    exploration: Positive  # standard deviation of actions that are numbers, in the episodes that do not count
    deviation: Positive  # in those that count, at first
    greedy: bool  # at meta-test, act by the likeliest action in episodes that count
    backbone: Backbone
    head: nn.Linear
    spec: TaskSpec
    world: World

    def __post_init__(self) -> None:
        self.policy: Policy = make_policy(self.world, self.deviation)
        if self.curvature == "path" and self.world.discrete:
            raise ConfigError("algo.curvature is path: it needs actions that are numbers, and these are choices: ratio")
        if self.spec.episodes[0] == 0 and self.inner_steps > 0:
            raise ConfigError("shots is 0: an inner step needs episodes to learn from")
        if self.adapted == "context":
            require_place(self.backbone, "algo.adapted=context", "tanh")

    def init(self) -> Theta:
        theta = draw_networks(self.backbone, self.head) | {"policy": self.policy.draw()}
        if self.adapted != "context":
            return theta
        with own_generator():
            return theta | {"maps": draw_maps(self.backbone, self.context_size)}

    def outputs(self, theta: Theta, phi: Theta, observation: Tensor) -> Tensor:
        """observation: [..., O] -> what the policy reads: [..., A], or [..., 2 A]."""
        weights = {**theta, **phi}
        body = weights["backbone"] | theta["norm"]
        if self.adapted == "context":
            body = modulate(body, theta["maps"], phi["context"]["phi"])
        features = forward(self.backbone, body, observation.flatten(0, -2))
        outputs = forward(self.head, weights["head"], features).unflatten(0, observation.shape[:-1])
        return self.policy.complete(outputs, theta["policy"])

    def explore(self, theta: Theta) -> Theta:
        """The same weights with the deviation of exploration."""
        wide = {name: torch.full_like(p, math.log(self.exploration)) for name, p in theta["policy"].items()}
        return {**theta, "policy": wide}

    def play(self, theta: Theta, phi: Theta, trial: Trial, purpose: int, greedy: bool = False) -> Rollout:
        """Play the episodes of inner step `purpose`, or those that count, side by side."""
        skipped, counted = self.spec.episodes
        path = self.curvature == "path"

        def read(memory: tuple[()], seen: Seen) -> tuple[tuple[()], Tensor]:
            return memory, self.outputs(theta, phi, seen.observation)

        with nullcontext() if path else torch.no_grad():
            player = Player(self.policy, read, greedy, path)
            return roll_out(self.world, trial, player, 1, counted if purpose == COUNTED else skipped, purpose)

    def judge(self, theta: Theta, phi: Theta, played: Rollout) -> Tensor:
        """What is descended in phi: minus the mean reward of a step, or the surrogate with the same gradient."""
        if self.curvature == "path":
            return -played.reward.mean()
        log_prob = self.policy.log_prob(self.outputs(theta, phi, played.observation), played.action)
        return -((log_prob - log_prob.detach()).exp() * self.advantage(played)).mean()

    def advantage(self, played: Rollout) -> Tensor:
        """[1, H, P]: the rewards from each step on, above what is linear in observations and time."""
        ahead = sum_ahead(played.reward[0], self.discount)
        return (ahead - linear_baseline(played.observation[0], ahead))[None]

    def begin(self, theta: Theta) -> Theta:
        """phi_0: what is adapted."""
        if self.adapted == "context":
            return {"context": {"phi": theta["head"]["bias"].new_zeros(self.context_size)}}
        return select(theta, "backbone", "head") if self.adapted == "all" else select(theta, "head")

    def trajectory(self, theta: Theta, trial: Trial) -> Iterator[Theta]:
        """Yield phi_0 .. phi_J. Each state holds the adapted components."""
        phi = self.begin(theta)
        explorer = self.explore(theta)
        rates = self.inner_lr if isinstance(self.inner_lr, list) else [self.inner_lr]
        yield phi
        for j in range(self.inner_steps):

            def loss(phi: Theta, j: int = j) -> Tensor:
                return self.judge(explorer, phi, self.play(explorer, phi, trial, j))

            phi = inner_step(loss, phi, lr=rates[min(j, len(rates) - 1)], first_order=self.first_order)
            yield phi

    def measure(self, played: Rollout) -> Metrics:
        """The returns of episodes that stand side by side, so that none comes first."""
        metrics = measure_returns(played.returns.T)
        del metrics["return_by_episode"]
        return metrics

    def task_loss(self, theta: Theta, trial: Trial) -> tuple[Tensor, Metrics]:
        """Minus the return after adaptation, or its surrogate (algorithm 3, line 10)."""
        phi = last(self.trajectory(theta, trial))
        played = self.play(theta, phi, trial, COUNTED)
        return self.judge(theta, phi, played), self.measure(played)

    def task_metrics(self, theta: Theta, trial: Trial) -> Metrics:
        """The returns after the last inner step, and the mean return after each from 0 on."""
        states = self.trajectory(theta, trial)
        found = [self.measure(self.play(theta, phi, trial, COUNTED, self.greedy)) for phi in states]
        return {**found[-1], "return_by_step": torch.stack([metrics["return"] for metrics in found])}
