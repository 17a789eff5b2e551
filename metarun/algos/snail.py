"""A simple neural attentive meta-learner (SNAIL).

Mishra, Rohaninejad, Chen, Abbeel, "A Simple Neural Attentive Meta-Learner", ICLR 2018,
https://arxiv.org/abs/1707.03141. There is no official code.

Each query is the last step of its own sequence, after the whole support, and only that step is scored. (The paper's
tasks have one query.) Dilations are 1, 2, 4, ..., so that a block's last step sees `length` steps. As printed, they
begin with 2, which would skip every other step.
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
from metarun.core.inner import copy_weights, draw_networks, forward
from metarun.core.objectives import attend_to_support, episode_metrics, judge, one_hot
from metarun.core.sequences import NOTHING
from metarun.core.types import Attention, Backbone, Episode, Examples, Metrics, TaskSpec, Theta


class DenseBlock(nn.Module):
    """Append the channels of a gated causal convolution with kernel 2 (figure 2a)."""

    def __init__(self, channels: int, dilation: int, filters: int) -> None:
        super().__init__()
        self.dilation = dilation
        self.conv = nn.Linear(2 * channels, 2 * filters)  # sees a step and the one `dilation` before it

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., steps, C] -> [..., steps, C + filters]."""
        before = F.pad(x, (0, 0, self.dilation, 0))[..., : x.shape[-2], :]
        proposal, gate = self.conv(torch.cat([before, x], dim=-1)).chunk(2, dim=-1)
        return torch.cat([x, proposal.tanh() * gate.sigmoid()], dim=-1)


class AttentionBlock(nn.Module):
    """Append what each step reads, by attention, from itself and the steps before (figure 2b)."""

    def __init__(self, channels: int, key_size: int, value_size: int) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(channels, key_size), nn.Linear(channels, key_size)
        self.value = nn.Linear(channels, value_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [..., steps, C] -> [..., steps, C + values], and where each step (row) reads: [..., steps, steps]."""
        steps, queries, keys = x.shape[-2], self.query(x), self.key(x)
        scores = queries @ keys.transpose(-2, -1) / math.sqrt(keys.shape[-1])
        later = torch.ones(steps, steps, dtype=torch.bool, device=x.device).triu(1)
        weights = scores.masked_fill(later, -torch.inf).softmax(-1)
        return torch.cat([x, weights @ self.value(x)], dim=-1), weights


class Network(nn.Module):
    """Attention blocks, with blocks of temporal convolutions between them, and a last layer (figure 3)."""

    def __init__(self, channels: int, length: int, filters: int, attention: list[list[int]], outputs: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        for i, (key_size, value_size) in enumerate(attention):
            for power in range(math.ceil(math.log2(length)) if i > 0 else 0):
                blocks.append(DenseBlock(channels, 2**power, filters))
                channels += filters
            blocks.append(AttentionBlock(channels, key_size, value_size))
            channels += value_size
        self.blocks = nn.ModuleList(blocks)
        self.last = nn.Linear(channels, outputs)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x: [..., steps, C] -> [..., steps, outputs], where each step sees itself and those before; and the weights of
        the attention blocks: [..., blocks, steps, steps].
        """
        weights = []
        for block in self.blocks:
            if isinstance(block, AttentionBlock):
                x, read = block(x)
                weights.append(read)
            else:
                x = block(x)
        return self.last(x), torch.stack(weights, dim=-3)


@register("algo", "snail", Traits(kinds=("classification",), order="support first", sized=True))
@dataclass(eq=False)
class SNAIL:
    """Learn to look back over a sequence by temporal convolutions and attention (Mishra et al. 2018)."""

    length: Count  # steps that a block of temporal convolutions sees
    filters: Count  # of each convolution
    attention: list[list[Count]]  # for each attention block [size of keys, size of values]
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        if not self.attention:
            raise ConfigError("algo.attention is empty: without a block of attention queries see no support")
        for sizes in self.attention:
            if len(sizes) != 2:
                raise ConfigError(f"algo.attention has {sizes}: each block has two sizes, of its keys and its values")
        self.network = self.build_network()  # template

    def build_network(self) -> Network:
        channels = self.backbone.feature_size + self.spec.output_size
        return Network(channels, self.length, self.filters, self.attention, self.spec.output_size)

    def init(self) -> Theta:
        return draw_networks(self.backbone) | {"network": copy_weights(self.build_network())}

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return forward(self.backbone, (theta["backbone"], theta["norm"]), x)

    def append_labels(self, z: Tensor, y: Tensor) -> Tensor:
        """Append labels to features: [n, D], y [n] -> [n, D + N]."""
        return torch.cat([z, one_hot(y, self.spec.output_size).to(z.dtype)], dim=-1)

    def last_step(self, theta: Theta, phi: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [q, N] at the last step, a query without a label, and where each block reads there, in the support
        and the step itself: [q, blocks, n + 1]. phi: [n, D + N], z: [q, D].
        """
        queries = F.pad(z, (0, self.spec.output_size))[:, None]  # [q, 1, D + N]
        sequences = torch.cat([phi.expand(len(z), *phi.shape), queries], dim=1)
        outputs, weights = functional_call(self.network, theta["network"], (sequences,))
        return outputs[:, -1], weights[:, :, -1]

    def adapt(self, theta: Theta, support: Examples) -> Tensor:
        """support.x: [n, *input], support.y: [n], in the order in which they are read -> [n, D + N]."""
        return self.append_labels(self.embed(theta, support.x), support.y)

    def predict(self, theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return self.last_step(theta, phi, self.embed(theta, x))[0]

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the last steps. The backbone sees support and query as one batch."""
        support, query = episode
        z = self.embed(theta, torch.cat([support.x, query.x]))
        phi = self.append_labels(z[: len(support.y)], support.y)
        return judge(self.spec, self.last_step(theta, phi, z[len(support.y) :])[0], query.y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)

    def attend(self, theta: Theta, episode: Episode) -> Attention:
        """Where queries look: in the support, and last, at themselves."""

        def weigh(theta: Theta, phi: Tensor, x: Tensor) -> Tensor:
            return self.last_step(theta, phi, self.embed(theta, x))[1]

        found = attend_to_support(self, weigh, theta, episode)
        return found._replace(seen=F.pad(episode.support.y, (0, 1), value=NOTHING))
