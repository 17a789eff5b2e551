"""Fast reinforcement learning by slow reinforcement learning (RL^2).

Duan, Schulman, Chen, Bartlett, Sutskever, Abbeel, "RL^2: Fast Reinforcement Learning via Slow Reinforcement Learning",
2016, https://arxiv.org/abs/1611.02779. The same idea: Wang et al., "Learning to reinforcement learn", 2016,
https://arxiv.org/abs/1611.05763. There is no official code.

A recurrent network sees the last action, its reward and where an episode begins; its state is kept from episode to
episode, so one forward pass learns a task. The objective is the return of all episodes that count.

The authors optimise by TRPO with a separate recurrent baseline, from 250,000 steps a time. Here one policy gradient is
taken from each batch of fresh trials. A task is tried several times side by side, and the baseline of a trial is the
mean of the others.

`memory: gru` is the authors' network. On tabular processes, where it has to remember what each choice paid in each
state, it stayed at chance for as long as a CPU has patience. Two memories that are not theirs store that under the
state from the first step on: `fast_weights`, and `ledger`, which also treats all actions alike and so learns of few
arms what holds for many.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor, nn

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Fraction, NonNegative, Positive, Range
from metarun.config.traits import Traits
from metarun.core.control import (
    Player,
    Policy,
    Rollout,
    compare_trials,
    make_policy,
    measure_returns,
    roll_out,
    sum_ahead,
)
from metarun.core.inner import copy_weights, draw_networks, forward
from metarun.core.recurrent import FastWeights, GRUCell, Ledger, State, step_cell
from metarun.core.types import Backbone, Metrics, Seen, TaskSpec, Theta, Trial, World


@register("algo", "rl2", Traits(kinds=("control",), exact=False, remembers=True))
@dataclass(eq=False)
class RL2:
    """Learn a network whose hidden state explores a task and remembers what paid (Duan et al. 2016)."""

    memory: Literal["gru", "fast_weights", "ledger"]
    hidden: Count
    keys: Count  # size of a key of fast weights and of the ledger
    trials: Annotated[int, Range(2)]  # of each task, side by side
    discount: Fraction
    entropy: NonNegative  # weight of the policy's entropy in the loss
    deviation: Positive  # of actions that are numbers, at first
    greedy: bool  # act by the likeliest action at meta-test
    backbone: Backbone
    spec: TaskSpec
    world: World

    def __post_init__(self) -> None:
        self.policy: Policy = make_policy(self.world, self.deviation)
        if self.memory == "ledger" and not self.world.discrete:
            raise ConfigError(
                "algo.memory is ledger: it has an account for each action, and here they are numbers: gru"
            )
        if self.memory == "ledger" and list(self.backbone.parameters()):
            raise ConfigError("algo.memory is ledger: it reads what is seen as it is: backbone=raw")
        self.networks = self.build_networks()  # templates

    def build_networks(self) -> dict[str, nn.Module]:
        if self.memory == "ledger":
            ledger = Ledger(self.world.observed, self.world.actions, self.hidden, self.keys)
            return {"memory": ledger, "readout": nn.Identity()}
        inputs = self.backbone.feature_size
        cell = GRUCell(inputs, self.hidden) if self.memory == "gru" else FastWeights(inputs, self.hidden, self.keys)
        return {"memory": cell, "readout": nn.Linear(self.hidden, self.world.actions)}

    def init(self) -> Theta:
        networks = {name: copy_weights(network) for name, network in self.build_networks().items()}
        return draw_networks(self.backbone) | networks | {"policy": self.policy.draw()}

    def roll_out(self, theta: Theta, trial: Trial, greedy: bool) -> Rollout:
        """All episodes of a task; the memory is kept from one to the next."""

        def start(trajectories: int) -> State:
            state: State = cell.start(like.new_zeros(trajectories, 0))  # type: ignore[operator]
            return state

        def read(memory: State, seen: Seen) -> tuple[State, Tensor]:
            inputs = torch.cat([seen.observation, seen.action, seen.reward[:, None], seen.begins[:, None]], -1)
            features = forward(self.backbone, (theta["backbone"], theta["norm"]), inputs)
            memory = step_cell(cell, theta["memory"], features, memory)
            outputs = forward(readout, theta["readout"], memory[0])
            return memory, self.policy.complete(outputs, theta["policy"])

        cell, readout = self.networks["memory"], self.networks["readout"]
        like = next(iter(theta["memory"].values()))
        player = Player(self.policy, read, greedy, begin=start)
        return roll_out(self.world, trial, player, sum(self.spec.episodes), self.trials)

    def task_loss(self, theta: Theta, trial: Trial) -> tuple[Tensor, Metrics]:
        """The policy gradient of the return, less the bonus for entropy."""
        played, skipped = self.roll_out(theta, trial, greedy=False), self.spec.episodes[0]
        counted = torch.cat([torch.zeros_like(played.reward[:skipped]), played.reward[skipped:]])
        gain = compare_trials(sum_ahead(counted.flatten(0, 1), self.discount)).unflatten(0, counted.shape[:2])
        entropy = self.policy.entropy(played.record).mean()
        loss = -(self.policy.log_prob(played.record, played.action) * gain).mean() - self.entropy * entropy
        return loss, {**measure_returns(played.returns[skipped:]), "entropy": entropy.detach()}

    def task_metrics(self, theta: Theta, trial: Trial) -> Metrics:
        return measure_returns(self.roll_out(theta, trial, self.greedy).returns[self.spec.episodes[0] :])
