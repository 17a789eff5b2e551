"""No inner loop (NIL): a trained network without its head.

Raghu, Raghu, Bengio, Vinyals, "Rapid Learning or Feature Reuse? Towards Understanding the Effectiveness of MAML",
ICLR 2020, https://arxiv.org/abs/1909.09157, section 5. There is no official code.

Intended for testing a network that another method trained, through `eval.algo`. It can also be trained: its logits are
cosines, without a temperature.
"""

from dataclasses import dataclass

from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Norm
from metarun.config.traits import Traits
from metarun.core.features import find_directions
from metarun.core.inner import draw_networks
from metarun.core.objectives import episode_loss, episode_metrics, one_hot
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


@register("algo", "nil", Traits(kinds=("classification",), ragged=True))
@dataclass(frozen=True)
class NIL:
    """Label a query by its cosine similarity to the features of the support (Raghu et al. 2020)."""

    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def init(self) -> Theta:
        return draw_networks(self.backbone)

    def adapt(self, theta: Theta, support: Examples) -> Tensor:
        """The sum of each class's directions. support.x: [n, *input], support.y: [n] -> [N, D]."""
        directions = find_directions(self.backbone, theta, support.x)
        return one_hot(support.y, self.spec.output_size).to(directions.dtype).T @ directions

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """Sum the support's labels, weighted by cosines with the query: x [n, *input] -> logits [n, N]."""
        return find_directions(self.backbone, theta, x) @ phi.T

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
