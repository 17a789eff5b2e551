"""Meta Networks (MetaNet).

Munkhdalai, Yu, "Meta Networks", ICML 2017, https://arxiv.org/abs/1703.00837;
code: https://github.com/tsendsuren/metanetworks.

Two networks share the backbone's form, not its weights: the base learner b with slow weights W, and u, which makes
keys, with slow weights Q. Behind the backbone b has a hidden layer and a last one, u the layer of the keys and a last
one for its own loss. Gradients that fast weights are made of are inputs: nothing is learned through them, so that u's
last layer stays as it was drawn.

As the authors do for miniImageNet, only layers behind the backbone have fast weights; for Omniglot their convolutions
have them too, so that this is a smaller model than that of their Omniglot figures. As in their code gradients are
preprocessed with p = 7, and the task's fast weights come from an LSTM over five chunks of the support. Unlike there
b and u start from the same backbone, biases have fast values too, and a test is of as many shots as it says.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks, log_and_sign
from metarun.core.objectives import episode_loss, episode_metrics
from metarun.core.perceptron import draw_perceptron, perceptron
from metarun.core.recurrent import LSTMCell, read
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta

P, CHUNKS, WIDTH = 7.0, 5, 20  # of the preprocessing; of the support; of what makes fast weights


class Memory(NamedTuple):
    """What a support leaves behind."""

    keys: Tensor  # R: [n, hidden]
    fast: Params  # W*: of each example, [n, ...] for every weight and bias of b's two layers
    task: Params  # Q*: of the layer of the keys


class TaskGenerator(nn.Module):
    """d: reads a coordinate's gradients chunk by chunk and says its fast weight. [chunks, ..., 2] -> [...]."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.out = LSTMCell(2, WIDTH), nn.Linear(WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        said: Tensor = self.out(read(self.cell, x)[-1])
        return said[..., 0]


@register("algo", "metanet", Traits(kinds=("classification",), sized=True))
@dataclass(eq=False)
class MetaNet:
    """Learn what makes fast weights out of gradients, and look them up by attention (Munkhdalai & Yu 2017)."""

    hidden: Count  # units of b's hidden layer, numbers of a key
    norm: Literal["batch", "per_query"]
    backbone: Backbone
    spec: TaskSpec

    def __post_init__(self) -> None:
        self.task_generator = TaskGenerator()

    def init(self) -> Theta:
        """W: "backbone", "norm", "base". Q: "key_backbone", "key_norm", "key". And the generators m and d."""
        weights = draw_networks(self.backbone)
        widths = (self.backbone.feature_size, self.hidden, self.spec.output_size)
        return {
            **weights,
            "base": draw_perceptron(*widths),
            **{f"key_{component}": {n: p.clone() for n, p in params.items()} for component, params in weights.items()},
            "key": draw_perceptron(*widths),
            "example_generator": draw_perceptron(2, WIDTH, WIDTH, 1),
            "task_generator": copy_weights(TaskGenerator()),
        }

    def features(self, theta: Theta, x: Tensor, prefix: str = "") -> Tensor:
        """x: [n, *input] -> [n, D], of b, or with the prefix "key_" of u."""
        return functional_call(self.backbone, (theta[f"{prefix}backbone"], theta[f"{prefix}norm"]), (x,))

    def task_weights(self, theta: Theta, z: Tensor, y: Tensor) -> Params:
        """Q*, by d from the gradients of u's loss on each chunk of the support: z [n, D], y [n]."""

        def loss(w: Params, z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(perceptron({**theta["key"], **w}, z), y)

        layer = {name: theta["key"][name] for name in ("0.weight", "0.bias")}
        count = min(CHUNKS, len(y))
        with torch.no_grad():
            found = [grad(loss)(layer, *chunk) for chunk in zip(z.tensor_split(count), y.tensor_split(count))]
            seen = {name: log_and_sign(torch.stack([g[name] for g in found]), P) for name in layer}
        return {name: functional_call(self.task_generator, theta["task_generator"], (x,)) for name, x in seen.items()}

    def example_weights(self, theta: Theta, z: Tensor, y: Tensor) -> Params:
        """W*_i, by m from the gradient of b's loss on example i alone: z [n, D], y [n] -> [n, ...] each."""

        def loss(w: Params, z: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(perceptron(w, z), y)

        with torch.no_grad():
            gradients = vmap(grad(loss), in_dims=(None, 0, 0))(theta["base"], z, y)
        generator = theta["example_generator"]
        return {name: perceptron(generator, log_and_sign(g, P))[..., 0] for name, g in gradients.items()}

    def key(self, theta: Theta, task: Params, z: Tensor) -> Tensor:
        """r: slow and fast layer, added. z: [n, D] -> [n, hidden]."""
        slow = theta["key"]
        return F.linear(z, slow["0.weight"] + task["0.weight"], slow["0.bias"] + task["0.bias"])

    def adapt(self, theta: Theta, support: Examples) -> Memory:
        """support.x: [n, *input], support.y: [n]."""
        z, y = self.features(theta, support.x, "key_"), support.y
        task = self.task_weights(theta, z, y)
        return Memory(self.key(theta, task, z), self.example_weights(theta, self.features(theta, support.x), y), task)

    def predict(self, theta: Theta, phi: Memory, x: Tensor) -> Tensor:
        """x: [q, *input] -> logits [q, N], by W and, for each query, W* = sum_i a_i W*_i with a = softmax cos(R_i, r).

        Layer augmentation: relu(W h) + relu(W* h), and W h + W* h in the last layer.
        """
        r = self.key(theta, phi.task, self.features(theta, x, "key_"))
        attention = (F.normalize(r, dim=-1) @ F.normalize(phi.keys, dim=-1).T).softmax(-1)  # [q, n]
        fast = {name: torch.einsum("qn,n...->q...", attention, p) for name, p in phi.fast.items()}
        slow = theta["base"]

        def paths(h: Tensor, layer: int) -> tuple[Tensor, Tensor]:
            weight, bias = f"{layer}.weight", f"{layer}.bias"
            return F.linear(h, slow[weight], slow[bias]), torch.einsum("qoh,qh->qo", fast[weight], h) + fast[bias]

        one, other = paths(self.features(theta, x), 0)
        one, other = paths(F.relu(one) + F.relu(other), 1)
        return one + other

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """Query loss: it trains slow weights and generators alike."""
        return episode_loss(self, self.spec, theta, episode)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
