"""Tip-Adapter's cache, without training.

Zhang, Zhang, Fang, Gao, Li, Dai, Qiao, Li, "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification",
ECCV 2022, https://arxiv.org/abs/2111.03930, section 3.1.

The paper's logits are alpha exp(-beta (1 - f F^T)) L + f W^T: a cache of the support's features F and labels L, and a
classifier W made from texts by CLIP. Of that the first term remains here, since networks have no texts; without the
second one, alpha scales all logits alike and is left out.

Intended for features that are there: raw inputs, or a network that another method trained, through `eval.algo`. It can
also be trained.
"""

from dataclasses import dataclass

from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Norm, Positive
from metarun.config.traits import Traits
from metarun.core.features import find_directions
from metarun.core.inner import draw_networks
from metarun.core.objectives import episode_loss, episode_metrics, one_hot
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "tip_adapter", Traits(kinds=("classification",), ragged=True))
@dataclass(frozen=True)
class TipAdapter:
    """Sum the support's labels, weighted by how near a query is on the unit sphere (Zhang et al. 2022)."""

    beta: Positive
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone)

    def adapt(self, theta: Theta, support: Examples) -> Params:
        """Fill the cache: keys F [n, D], values L [n, N]. support.x: [n, *input]."""
        keys = find_directions(self.backbone, theta, support.x)
        return {"keys": keys, "values": one_hot(support.y, self.spec.output_size).to(keys.dtype)}

    def predict(self, theta: Theta, phi: Params, x: Tensor) -> Tensor:
        """exp(-beta (1 - f F^T)) L. x: [n, *input] -> logits [n, N]."""
        cosines = find_directions(self.backbone, theta, x) @ phi["keys"].T
        return (-self.beta * (1 - cosines)).exp() @ phi["values"]

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
