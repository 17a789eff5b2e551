"""Class means compared by cosines, times a learned scale: an example of a method in a package of its own."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call

from metarun.config.registry import register
from metarun.config.schema import Norm, Positive
from metarun.config.traits import Traits
from metarun.core.inner import draw_networks
from metarun.core.objectives import episode_loss, episode_metrics, one_hot
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "cosine_means", Traits(kinds=("classification",)))
@dataclass(frozen=True)
class CosineMeans:
    """Learn an embedding in which a query points the same way as its class's mean."""

    scale: Positive  # of the cosines at the start
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return {**draw_networks(self.backbone), "metric": {"scale": torch.tensor(self.scale)}}

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return functional_call(self.backbone, (theta["backbone"], theta["norm"]), (x,))

    def adapt(self, theta: Theta, support: Examples) -> Tensor:
        """Sums of each class's features, which point where the means do: support.x [n, *input] -> [N, D]."""
        z = self.embed(theta, support.x)
        return one_hot(support.y, self.spec.output_size).to(z.dtype).T @ z

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return theta["metric"]["scale"] * F.normalize(self.embed(theta, x)) @ F.normalize(phi).T

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
