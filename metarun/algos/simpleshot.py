"""SimpleShot: nearest class mean of features that are centred and scaled to length 1.

Wang, Chao, Weinberger, van der Maaten, "SimpleShot: Revisiting Nearest-Neighbor Classification for Few-Shot Learning",
2019, https://arxiv.org/abs/1911.04623: CL2N, or L2N without a centre. The centre is the mean over training tasks where
the test uses such averages (`norm: running`), as in the paper; elsewhere it is the support's own mean.

Intended for features that are there: raw inputs, or a network that another method trained, through `eval.algo`. The
paper trains a classifier of all training classes. Trained itself, it is ProtoNet with these distances.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Norm
from metarun.config.traits import Traits
from metarun.core.features import find_centre
from metarun.core.inner import draw_networks, forward
from metarun.core.objectives import class_means, episode_loss, episode_metrics
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "simpleshot", Traits(kinds=("classification",), ragged=True))
@dataclass(frozen=True)
class SimpleShot:
    """Compare a query with the class means of centred features of length 1 (Wang et al. 2019)."""

    centred: bool  # CL2N; false: L2N
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone)

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return forward(self.backbone, (theta["backbone"], theta["norm"]), x)

    def adapt(self, theta: Theta, support: Examples) -> Params:
        """support.x: [n, *input] -> the centre [D], and the classes' means [N, D]."""
        z = self.features(theta, support.x)
        centre = find_centre(self.backbone, z, support.y) if self.centred else torch.zeros_like(z[0])
        means = class_means(F.normalize(z - centre, dim=-1), support.y, self.spec.output_size)
        return {"centre": centre, "means": means}

    def predict(self, theta: Theta, phi: Params, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N], minus the squared distances."""
        z = F.normalize(self.features(theta, x) - phi["centre"], dim=-1)
        return -(z[:, None] - phi["means"]).square().sum(-1)

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
