"""In-context learning over sequences of features: CAML.

Fifty, Duan, Junkins, Amid, Leskovec, Re, Thrun, "Context-Aware Meta-Learning", ICLR 2024,
https://arxiv.org/abs/2310.10971. A transformer reads the support and one query as a sequence without positions, so that
the order of the support means nothing: each step is a feature beside the vector of its label, and the label of the
query is what it says at the query's step. The vectors of labels are fixed, of length 1 and equally far from each other
(ELMES, section 4), times a learned factor; the query has a learned one that stands for "unknown".

As in the authors' code: norm layers come first in each layer, GELU, no dropout, and a last layer without a bias. Here
the vectors of labels lie along the axes, where theirs are turned at random, and attention has its own size, where
theirs has that of the sequence. Their features are those of a frozen network, as with `encoder=` and `backbone=raw`; a
backbone with weights is trained with the transformer.
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Norm
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks, forward
from metarun.core.objectives import episode_metrics, judge
from metarun.core.types import Backbone, Episode, Examples, Metrics, TaskSpec, Theta

EPS = 1e-6


class LayerNorm(nn.Module):
    """With the affine part by itself: PyTorch's own has wrong second derivatives under vmap."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(size)), nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=EPS) * self.weight + self.bias


class Layer(nn.Module):
    """Attention of all steps to all, and a perceptron of each step, both added to what is there."""

    def __init__(self, size: int, heads: int, head_size: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList([LayerNorm(size), LayerNorm(size)])
        self.read, self.write = nn.Linear(size, 3 * heads * head_size), nn.Linear(heads * head_size, size)
        self.inner, self.outer = nn.Linear(size, hidden), nn.Linear(hidden, size)

    def forward(self, x: Tensor) -> Tensor:
        """[..., steps, size] -> the same."""
        parts = self.read(self.norms[0](x)).chunk(3, dim=-1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(-2, -3) for part in parts)
        weights = (query @ key.transpose(-2, -1) / math.sqrt(key.shape[-1])).softmax(-1)  # [..., heads, steps, steps]
        x = x + self.write((weights @ value).transpose(-2, -3).flatten(-2))
        y: Tensor = x + self.outer(F.gelu(self.inner(self.norms[1](x))))
        return y


class Transformer(nn.Module):
    """From features of the support and of queries, and the support's labels, to the queries' logits."""

    def __init__(self, size: int, label_size: int, classes: int, layers: int, *of_layer: int) -> None:
        super().__init__()
        self.unknown, self.scale = nn.Parameter(torch.zeros(label_size)), nn.Parameter(torch.ones(1))
        self.layers = nn.Sequential(*(Layer(size + label_size, *of_layer) for _ in range(layers)))
        self.norm, self.last = LayerNorm(size + label_size), nn.Linear(size + label_size, classes, bias=False)

    def forward(self, support: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
        """[n, D], [n, label_size], [q, D] -> [q, classes]; each query in a sequence of its own, before the support."""
        shown = torch.cat([support, self.scale * labels], dim=-1)
        asked = torch.cat([queries, self.unknown.expand(len(queries), -1)], dim=-1)
        sequences = torch.cat([asked[:, None], shown.expand(len(asked), *shown.shape)], dim=1)
        logits: Tensor = self.last(self.norm(self.layers(sequences)[:, 0]))
        return logits


@register("algo", "icl", Traits(kinds=("classification",), sized=True))
@dataclass(eq=False)
class ICL:
    """Learn to read a task as a sequence of features and labels, by a transformer (Fifty et al. 2024)."""

    label_size: Count  # of the vectors of labels
    layers: Count
    heads: Count
    head_size: Count
    hidden: Count  # units of the perceptron in a layer
    norm: Norm
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        if self.label_size < self.spec.output_size:
            number = self.spec.output_size
            raise ConfigError(
                f"algo.label_size is {self.label_size}: it must be at least {number}, the classes of a task"
            )
        self.network = self.build_network()  # template

    def build_network(self) -> Transformer:
        sizes = (self.layers, self.heads, self.head_size, self.hidden)
        return Transformer(self.backbone.feature_size, self.label_size, self.spec.output_size, *sizes)

    def init(self) -> Theta:
        return draw_networks(self.backbone) | {"network": copy_weights(self.build_network())}

    def embed(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> [n, D]."""
        return forward(self.backbone, (theta["backbone"], theta["norm"]), x)

    def place_labels(self, y: Tensor, z: Tensor) -> Tensor:
        """The corners of a regular simplex, of length 1, for labels y [n]; like z -> [n, label_size]."""
        classes = self.spec.output_size
        corners = torch.eye(classes, dtype=z.dtype, device=z.device) - 1 / classes
        return F.pad(math.sqrt(classes / (classes - 1)) * corners, (0, self.label_size - classes))[y]

    def adapt(self, theta: Theta, support: Examples) -> Examples:
        """support.x: [n, *input], support.y: [n] -> features [n, D], vectors of labels [n, label_size]."""
        z = self.embed(theta, support.x)
        return Examples(z, self.place_labels(support.y, z))

    def logits(self, theta: Theta, phi: Examples, z: Tensor) -> Tensor:
        """z: [q, D] -> [q, N]."""
        return forward(self.network, theta["network"], *phi, z)

    def predict(self, theta: Theta, phi: Examples, x: Tensor) -> Tensor:
        """x: [q, *input] -> logits [q, N]."""
        return self.logits(theta, phi, self.embed(theta, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Cross-entropy of the queries. The backbone sees support and query as one batch."""
        support, query = episode
        z = self.embed(theta, torch.cat([support.x, query.x]))
        shown, asked = z[: len(support.y)], z[len(support.y) :]
        phi = Examples(shown, self.place_labels(support.y, shown))
        return judge(self.spec, self.logits(theta, phi, asked), query.y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
