"""A rule of a dataset, such as the best play in a world: what a trained model is compared with, on the same tasks."""

from dataclasses import dataclass

from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import Traits
from metarun.core.control import measure_returns, roll_out
from metarun.core.objectives import judge, measure_test
from metarun.core.types import Episode, Metrics, Task, TaskSpec, Theta, World


@register("algo", "rule", Traits(kinds=("control", "regression", "classification")))
@dataclass(frozen=True)
class Rule:
    """Act, or predict, by one of the rules that a dataset has, or by a baseline; learn nothing."""

    rule: str
    trials: Count  # of each task, in control
    spec: TaskSpec
    world: World

    def __post_init__(self) -> None:
        if self.spec.kind != "control" and self.spec.rule is None:
            raise ConfigError("algo=rule predicts by the rules of a dataset, and this dataset has none")

    def init(self) -> Theta:
        return {}

    def task_loss(self, theta: Theta, task: Task) -> tuple[Tensor, Metrics]:
        """The error, or minus the return, for which no weight is to blame."""
        if isinstance(task, Episode):
            return judge(self.spec, self.predict(task), task.query.y)
        metrics = self.task_metrics(theta, task)
        return -metrics["return"], metrics

    def predict(self, episode: Episode) -> Tensor:
        """Predict the queries [n, *output], or logits [n, N]."""
        assert self.spec.rule is not None
        return self.spec.rule(self.rule, episode.support, episode.query.x)

    def task_metrics(self, theta: Theta, task: Task) -> Metrics:
        if isinstance(task, Episode):
            return measure_test(self.spec, self.predict(task), task.query.y)
        skipped, episodes = self.spec.episodes[0], sum(self.spec.episodes)
        agent = self.world.rule(self.rule, task.latent, episodes)
        return measure_returns(roll_out(self.world, task, agent, episodes, self.trials).returns[skipped:])
