"""Relation networks.

Sung, Yang, Zhang, Xiang, Torr, Hospedales, "Learning to Compare: Relation Network for Few-Shot Learning", CVPR 2018,
https://arxiv.org/abs/1711.06025.

As in the authors' code, norm layers always use the statistics of the batch at hand: at meta-test the queries are
normalised together, and so are all pairs of a class and a query in the relation module. `norm: running` is not
available. The code clips the gradients of embedding and relation module separately, each to norm 0.5; here the
embedding's norm layers are a third component.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks, forward
from metarun.core.norm import BatchNorm
from metarun.core.objectives import episode_metrics, measure, one_hot
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


class Relation(nn.Module):
    """g, from two stacked maps to a score: two blocks of convolution, two layers (section 3.4).

    The paper's convolutions have padding for Omniglot's 5x5 maps and none for the larger ones of miniImageNet; here
    maps below 10x10 are padded. Maps of 1x1 are not pooled.
    """

    def __init__(self, shape: tuple[int, ...], hidden: int) -> None:
        super().__init__()
        channels, side, _ = shape
        padding = 1 if side < 10 else 0
        self.convs = nn.ModuleList(
            nn.Conv2d(inputs, channels, 3, padding=padding, bias=False) for inputs in (2 * channels, channels)
        )
        for weight in self.convs.parameters():
            nn.init.kaiming_normal_(weight, mode="fan_out")
        self.norms = nn.ModuleList(BatchNorm(channels) for _ in range(2))
        for _ in range(2):
            side = max((side - 2 + 2 * padding) // 2, 1)
        self.layers = nn.ModuleList([nn.Linear(channels * side**2, hidden), nn.Linear(hidden, 1)])
        for name, parameter in self.layers.named_parameters():
            if name.endswith("weight"):
                nn.init.normal_(parameter, std=0.01)
            else:
                nn.init.ones_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        """x: [pairs, 2C, S, S] -> [pairs], each between 0 and 1."""
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
            x = F.max_pool2d(x, 2) if x.shape[-1] > 1 else x
        x = F.relu(self.layers[0](x.flatten(1)))
        return torch.sigmoid(self.layers[1](x))[:, 0]


@register("algo", "relationnet", Traits(kinds=("classification",)))
@dataclass(eq=False)
class RelationNet:
    """Learn an embedding and a network that scores pairs of a class and a query (Sung et al. 2018)."""

    hidden: Count  # units of the relation module's second to last layer
    norm: Literal["batch", "per_query"]
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        shape = self.backbone.feature_shape
        if len(shape) != 3:
            raise ConfigError(
                f"algo=relationnet compares maps [C, S, S], and this backbone has features {list(shape)}: "
                "choose a backbone that has maps, for example conv4_relation"
            )
        self.relation = self.build_relation()  # template

    def build_relation(self) -> Relation:
        return Relation(self.backbone.feature_shape, self.hidden)

    def init(self) -> Theta:
        return {**draw_networks(self.backbone), "relation": copy_weights(self.build_relation())}

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """f: x [n, *input] -> maps [n, C, S, S]."""
        z = forward(self.backbone, (theta["backbone"], theta["norm"]), x)
        return z.view(z.shape[0], *self.backbone.feature_shape)

    def adapt(self, theta: Theta, support: Examples) -> Tensor:
        """The sum of each class's maps (section 3.3): support.x [n, *input] -> [N, C, S, S]."""
        members = one_hot(support.y, self.spec.output_size)  # [n, N]
        maps = self.embed(theta, support.x)
        return torch.einsum("nk,n...->k...", members.to(maps.dtype), maps)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """r_{k, i} = g(C(f(class k), f(x_i))) (Eq. 1): x [n, *input] -> relation scores [n, N], between 0 and 1."""
        z = self.embed(theta, x)  # [n, C, S, S]
        pairs = torch.cat(
            [phi.expand(z.shape[0], *phi.shape), z[:, None].expand(-1, *phi.shape)],
            dim=2,
        )  # [n, N, 2C, S, S]
        scores = forward(self.relation, theta["relation"], pairs.flatten(0, 1))
        return scores.view(pairs.shape[:2])

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Mean squared error of the scores: 1 for the query's own class, else 0 (Eq. 2, there a sum)."""
        support, query = episode
        scores = self.predict(theta, self.adapt(theta, support), query.x)
        loss = F.mse_loss(scores, one_hot(query.y, self.spec.output_size).to(scores.dtype))
        return loss, measure(self.spec, scores, query.y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
