"""A rule of a world, such as its best play: what a trained policy is compared with, on the same tasks."""

from dataclasses import dataclass

from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import Traits
from metarun.core.control import measure_returns, roll_out
from metarun.core.types import Metrics, TaskSpec, Theta, Trial, World


@register("algo", "rule", Traits(kinds=("control",)))
@dataclass(frozen=True)
class Rule:
    """Act by one of the rules that a world has; learn nothing."""

    rule: str
    trials: Count  # of each task
    spec: TaskSpec
    world: World

    def init(self) -> Theta:
        return {}

    def task_loss(self, theta: Theta, trial: Trial) -> tuple[Tensor, Metrics]:
        """Minus the return, for which no weight is to blame."""
        metrics = self.task_metrics(theta, trial)
        return -metrics["return"], metrics

    def task_metrics(self, theta: Theta, trial: Trial) -> Metrics:
        skipped, episodes = self.spec.episodes[0], sum(self.spec.episodes)
        agent = self.world.rule(self.rule, trial.latent, episodes)
        return measure_returns(roll_out(self.world, trial, agent, episodes, self.trials).returns[skipped:])
