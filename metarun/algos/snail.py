"""A simple neural attentive meta-learner (SNAIL).

Mishra, Rohaninejad, Chen, Abbeel, "A Simple Neural Attentive Meta-Learner", ICLR 2018,
https://arxiv.org/abs/1707.03141. There is no official code.

Each query of a task is the last step of a sequence of its own, after the whole support; the paper's tasks have one
query, and only that step is scored, as here. Dilations are 1, 2, 4, ..., so that a block's last step reaches `length`
steps back; as printed they begin with 2, which leaves out every other step.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Norm
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks
from metarun.core.objectives import episode_metrics, judged, one_hot
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta


class DenseBlock(nn.Module):
    """Adds to the channels those of a gated causal convolution of kernel 2 (figure 2a)."""

    def __init__(self, channels: int, dilation: int, filters: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.conv = nn.Linear(2 * channels, 2 * filters)  # of a step and the one `dilation` before it

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., steps, C] -> [..., steps, C + filters]."""
        before = F.pad(x, (0, 0, self.dilation, 0))[..., : x.shape[-2], :]
        proposal, gate = self.conv(torch.cat([before, x], dim=-1)).chunk(2, dim=-1)
        return torch.cat([x, proposal.tanh() * gate.sigmoid()], dim=-1)


class AttentionBlock(nn.Module):
    """Adds to the channels what each step reads from itself and the steps before (figure 2b)."""

    def __init__(self, channels: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(channels, key_size), nn.Linear(channels, key_size)
        self.value = nn.Linear(channels, value_size)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., steps, C] -> [..., steps, C + values]."""
        steps, queries, keys = x.shape[-2], self.query(x), self.key(x)
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])  # [..., steps, steps]
        later = torch.ones(steps, steps, dtype=torch.bool, device=x.device).triu(1)
        return torch.cat([x, scores.masked_fill(later, -torch.inf).softmax(-1) @ self.value(x)], dim=-1)


class Network(nn.Module):
    """Attention blocks, between every two of them a block of temporal convolutions, and a last layer (figure 3)."""

    def __init__(self, channels: int, length: int, filters: int, attention: list[list[int]], outputs: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i, (key_size, value_size) in enumerate(attention):
            for power in range(math.ceil(math.log2(length)) if i > 0 else 0):
                blocks.append(DenseBlock(channels, 2**power, filters))
                channels += filters
            blocks.append(AttentionBlock(channels, key_size, value_size))
            channels += value_size
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., steps, C] -> [..., steps, outputs], each step of itself and those before."""
        return self.last(self.blocks(x))


@register("algo", "snail", Traits(kinds=("classification",), order="support first", sized=True))
@dataclass(eq=False)
class SNAIL:
    """Learn to look back over a sequence, by convolutions in time and attention (Mishra et al. 2018)."""

    length: Count  # steps that a block of temporal convolutions reaches over
    filters: Count  # of each convolution
    attention: list[list[Count]]  # sizes of keys and values, block by block
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        for sizes in self.attention:
            if len(sizes) != 2:
                raise ConfigError(f"algo.attention has {sizes}: each block has two sizes, of its keys and its values")
        self.network = self.build_network()

    def build_network(self) -> Network:
        channels = self.backbone.feature_size + self.spec.output_size
        return Network(channels, self.length, self.filters, self.attention, self.spec.output_size)

    def init(self) -> Theta:
        return draw_networks(self.backbone) | {"network": copy_weights(self.build_network())}

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return functional_call(self.backbone, (theta["backbone"], theta["norm"]), (x,))

    def labelled(self, z: Tensor, y: Tensor) -> Tensor:
        """The first steps of a sequence: [n, D], y [n] -> [n, D + N]."""
        return torch.cat([z, one_hot(y, self.spec.output_size).to(z.dtype)], dim=-1)

    def logits(self, theta: Theta, phi: Tensor, z: Tensor) -> Tensor:
        """What is said at the last step, a query without a label. phi: [n, D + N], z: [q, D] -> [q, N]."""
        queries = F.pad(z, (0, self.spec.output_size))[:, None]  # [q, 1, D + N]
        sequences = torch.cat([phi.expand(len(z), *phi.shape), queries], dim=1)
        return functional_call(self.network, theta["network"], (sequences,))[:, -1]

    def adapt(self, theta: Theta, support: Examples) -> Tensor:
        """support.x: [n, *input], support.y: [n], in the order in which they are read -> [n, D + N]."""
        return self.labelled(self.embed(theta, support.x), support.y)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return self.logits(theta, phi, self.embed(theta, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the last steps. Support and query pass the backbone as one batch."""
        support, query = episode
        z = self.embed(theta, torch.cat([support.x, query.x]))
        phi = self.labelled(z[: len(support.y)], support.y)
        return judged(self.spec, self.logits(theta, phi, z[len(support.y) :]), query.y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
