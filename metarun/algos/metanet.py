"""Meta Networks (MetaNet).

Munkhdalai, Yu, "Meta Networks", ICML 2017, https://arxiv.org/abs/1703.00837;
code: https://github.com/tsendsuren/metanetworks.

Two networks have the same architecture and separate weights: the base learner b with slow weights W, and u with slow
weights Q, which computes keys. After the backbone, b has a hidden layer and a last one; u has the layer of the keys and
a last one for its own loss. Fast weights are computed from gradients, which count as constants, so u's last layer keeps
its initial weights.

As the authors do for miniImageNet, only the layers after the backbone have fast weights. Their Omniglot model has fast
weights in its convolutions too, so ours is smaller. As in their code, gradients are preprocessed with p = 7, and the
task's fast weights come from an LSTM over five chunks of the support. Unlike in that code, b and u start from the same
backbone, biases have fast values too, and a test has as many shots as configured. Generators start small: nearly all
gradients look alike to a new one, so all fast weights start with nearly the same value, and as PyTorch draws layers it
was five times a slow weight. Losses on Omniglot 5-way 1-shot started at 21, and the first 400 steps stayed at chance.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, vmap

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks, forward, log_and_sign
from metarun.core.objectives import attend_to_support, episode_loss, episode_metrics
from metarun.core.perceptron import draw_perceptron, perceptron
from metarun.core.recurrent import LSTMCell, read
from metarun.core.types import Attention, Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta

P = 7.0  # preprocessing of gradients: see log_and_sign
CHUNKS = 5  # parts of the support whose gradients the LSTM reads
WIDTH = 20  # units of the networks that generate fast weights
SMALL = 0.1  # of a generator's last layer as it is drawn, so that fast weights start small beside slow ones


class Memory(NamedTuple):
    """What is kept of a support."""

    keys: Tensor  # R: [n, hidden]
    fast: Params  # W*: of each example, [n, ...] for every weight and bias of b's two layers
    task: Params  # Q*: for the layer of the keys


class TaskGenerator(nn.Module):
    """d: from a coordinate's gradients, chunk by chunk, to its fast weight. [chunks, ..., 2] -> [...]."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = LSTMCell(2, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.out(read(self.cell, x)[-1])
        return output[..., 0]


def shrink(generator: Params, layer: str) -> Params:
    """Scale one layer, named by its prefix."""
    return {name: SMALL * p if name.startswith(layer) else p for name, p in generator.items()}


@register("algo", "metanet", Traits(kinds=("classification",), exact=False, sized=True))
@dataclass(eq=False)
class MetaNet:
    """Learn to generate fast weights from gradients, and look them up by attention (Munkhdalai & Yu 2017)."""

    hidden: Count  # units of b's hidden layer, and size of a key
    norm: Literal["batch", "per_query"]
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        self.task_generator = TaskGenerator()  # template

    def init(self) -> Theta:
        """W: "backbone", "norm", "base". Q: "key_backbone", "key_norm", "key". And the generators m and d."""
        weights = draw_networks(self.backbone)
        widths = (self.backbone.feature_size, self.hidden, self.spec.output_size)
        return {
            **weights,
            "base": draw_perceptron(*widths),
            **{f"key_{component}": {n: p.clone() for n, p in params.items()} for component, params in weights.items()},
            "key": draw_perceptron(*widths),
            "example_generator": shrink(draw_perceptron(2, WIDTH, WIDTH, 1), "2."),
            "task_generator": shrink(copy_weights(TaskGenerator()), "out."),
        }

    def features(self, theta: Theta, x: Tensor, prefix: str = "") -> Tensor:
        """Features from b's backbone, or with the prefix "key_" from u's. x: [n, *input] -> [n, D]."""
        return forward(self.backbone, (theta[f"{prefix}backbone"], theta[f"{prefix}norm"]), x)

    def task_weights(self, theta: Theta, z: Tensor, y: Tensor) -> Params:
        """Q*: d of the gradients of u's loss on each chunk of the support. z: [n, D], y: [n]."""

        def loss(w: Params, z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(perceptron({**theta["key"], **w}, z), y)

        layer = {name: theta["key"][name] for name in ("0.weight", "0.bias")}
        count = min(CHUNKS, len(y))
        with torch.no_grad():
            gradients = [grad(loss)(layer, *chunk) for chunk in zip(z.tensor_split(count), y.tensor_split(count))]
            inputs = {name: log_and_sign(torch.stack([g[name] for g in gradients]), P) for name in layer}
        return {name: forward(self.task_generator, theta["task_generator"], x) for name, x in inputs.items()}

    def example_weights(self, theta: Theta, z: Tensor, y: Tensor) -> Params:
        """W*_i: m of the gradient of b's loss on example i alone. z: [n, D], y: [n] -> [n, ...] each."""

        def loss(w: Params, z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(perceptron(w, z), y)

        with torch.no_grad():
            gradients = vmap(grad(loss), in_dims=(None, 0, 0))(theta["base"], z, y)
        generator = theta["example_generator"]
        return {name: perceptron(generator, log_and_sign(g, P))[..., 0] for name, g in gradients.items()}

    def key(self, theta: Theta, task: Params, z: Tensor) -> Tensor:
        """r, from the sum of slow and fast layer. z: [n, D] -> [n, hidden]."""
        slow = theta["key"]
        return F.linear(z, slow["0.weight"] + task["0.weight"], slow["0.bias"] + task["0.bias"])

    def attention(self, theta: Theta, phi: Memory, x: Tensor) -> Tensor:
        """a, a softmax of cos(R_i, r): the share of example i in a query's fast weights. x: [q, *input] -> [q, n]."""
        r = self.key(theta, phi.task, self.features(theta, x, "key_"))
        return (F.normalize(r, dim=-1) @ F.normalize(phi.keys, dim=-1).T).softmax(-1)

    def adapt(self, theta: Theta, support: Examples) -> Memory:
        """support.x: [n, *input], support.y: [n]."""
        z, y = self.features(theta, support.x, "key_"), support.y
        task = self.task_weights(theta, z, y)
        return Memory(self.key(theta, task, z), self.example_weights(theta, self.features(theta, support.x), y), task)

    def predict(self, theta: Theta, phi: Memory, x: Tensor) -> Tensor:
        """x: [q, *input] -> logits [q, N]. A query's fast weights are W* = sum_i a_i W*_i.

        Layer augmentation: relu(W h) + relu(W* h) in the hidden layer, and W h + W* h in the last.
        """
        attention = self.attention(theta, phi, x)
        fast = {name: torch.einsum("qn,n...->q...", attention, p) for name, p in phi.fast.items()}
        slow = theta["base"]

        def paths(h: Tensor, layer: int) -> tuple[Tensor, Tensor]:
            weight, bias = f"{layer}.weight", f"{layer}.bias"
            return F.linear(h, slow[weight], slow[bias]), torch.einsum("qoh,qh->qo", fast[weight], h) + fast[bias]

        slow_path, fast_path = paths(self.features(theta, x), 0)
        slow_path, fast_path = paths(F.relu(slow_path) + F.relu(fast_path), 1)
        return slow_path + fast_path

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss, which trains slow weights and generators."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)

    def attend(self, theta: Theta, episode: Episode) -> Attention:
        """From which support examples a query's fast weights are mixed."""
        return attend_to_support(self, lambda *at: self.attention(*at)[:, None], theta, episode)
