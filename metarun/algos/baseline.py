"""Baseline and Baseline++: train a classifier of all training classes, then fit a new last layer on its features.

Chen, Liu, Kira, Wang, Huang, "A Closer Look at Few-shot Classification", ICLR 2019,
https://arxiv.org/abs/1904.04232.

The new layer starts at random and is fitted in random batches, as in the authors' code. Here both are the same for
every task of one size. Their code also learns a length for each weight vector of the cosine layer, unlike the paper.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from metarun.config.registry import register
from metarun.config.schema import Count, Fraction, NonNegative, Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks, forward, own_generator
from metarun.core.objectives import class_means, episode_metrics, judge
from metarun.core.seeding import hash_uniform
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "baseline", Traits(kinds=("classification",), supervised=True, ragged=True))
@dataclass(frozen=True)
class Baseline:
    """Train a classifier, freeze its features, fit a new last layer to the support (Chen et al. 2019)."""

    batch_size: Count  # images of a training step, from all training classes
    cosine_scale: Positive | None  # factor of the cosines that are Baseline++'s logits; null: Baseline's linear layer
    head_start: Literal["random", "class_means"]
    head_lr: Positive
    head_passes: Whole  # over the support
    head_batch: Count  # examples of the support in a step
    momentum: Fraction
    dampening: Fraction
    weight_decay: NonNegative
    norm: Norm
    backbone: Backbone
    spec: TaskSpec  # output_size: in training all training classes, at meta-test the ways of a task

    def init(self) -> Theta:
        """The "classifier" is a last layer for all training classes; a cosine layer has no bias."""
        theta = draw_networks(self.backbone)
        with own_generator():
            classifier = copy_weights(self.backbone.head(self.spec.output_size))
        if self.cosine_scale is not None:
            del classifier["bias"]
        return {**theta, "classifier": classifier}

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> z [n, D]."""
        return forward(self.backbone, (theta["backbone"], theta["norm"]), x)

    def logits(self, layer: Params, z: Tensor) -> Tensor:
        """W z + b, or scale * cos(z, w_c) (section 3.2). z: [n, D] -> [n, classes]."""
        if self.cosine_scale is None:
            return F.linear(z, layer["weight"], layer["bias"])
        return self.cosine_scale * F.linear(F.normalize(z), F.normalize(layer["weight"]))

    def start(self, z: Tensor, y: Tensor) -> Params:
        """The new layer's initial weights: torch's own for a linear layer, or the classes' mean features.

        z: [n, D], y: [n] -> weight [N, D] and, with logits that are no cosines, bias [N].
        """
        ways, size = self.spec.output_size, z.shape[-1]
        weight, bias = (hash_uniform(ways * (size + 1), z.new_zeros(())) / size**0.5).split([ways * size, ways])
        layer = {"weight": weight.view(ways, size)}
        if self.head_start == "class_means":
            layer = {"weight": class_means(z, y, ways)}
        return layer if self.cosine_scale is not None else {**layer, "bias": bias}

    def adapt(self, theta: Theta, support: Examples) -> Params:
        """Fit a new last layer, weight [N, D], by gradient descent on batches of the support."""
        z, y = self.features(theta, support.x), support.y

        def loss(layer: Params, batch: Tensor) -> Tensor:
            return F.cross_entropy(self.logits(layer, z[batch]), y[batch])

        return self.fit(loss, self.start(z, y), self.batches(z))

    def batches(self, z: Tensor) -> Iterator[Tensor]:
        """Yield the rows of z [n, D] in a random order, a batch at a time, once for each pass."""
        salts = torch.arange(1, self.head_passes + 1, device=z.device, dtype=z.dtype)
        for order in hash_uniform(len(z), salts).argsort(-1):
            yield from order.split(self.head_batch)

    def fit(self, loss: Callable[[Params, Tensor], Tensor], layer: Params, batches: Iterator[Tensor]) -> Params:
        """Take a step of gradient descent with momentum for each batch, equal to those of torch.optim.SGD."""
        velocity: Params = {}
        for batch in batches:
            gradient = grad(loss)(layer, batch)
            gradient = {name: gradient[name] + self.weight_decay * p for name, p in layer.items()}
            velocity = {
                name: self.momentum * velocity[name] + (1 - self.dampening) * g if velocity else g
                for name, g in gradient.items()
            }
            layer = {name: p - self.head_lr * velocity[name] for name, p in layer.items()}
        return layer

    def predict(self, theta: Theta, phi: Params, x: Tensor) -> Tensor:
        """x: [n, *input] -> logits [n, N]."""
        return self.logits(phi, self.features(theta, x))

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """The classifier's loss and accuracy over all training classes, on a batch of images without a support."""
        images, y = episode.query
        return judge(self.spec, self.logits(theta["classifier"], self.features(theta, images)), y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
