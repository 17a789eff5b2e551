"""Baseline and Baseline++: a classifier of all training classes, whose frozen features serve a new last layer.

Chen, Liu, Kira, Wang, Huang, "A Closer Look at Few-shot Classification", ICLR 2019,
https://arxiv.org/abs/1904.04232.

Unlike there the new layer is fitted without randomness: every step is on the whole support, where the authors pass
100 times over it in random batches of 4 (at 5-way 1-shot 200 steps), and it starts from zeros, with cosines from the
classes' mean features, where theirs start at random. Their code also learns a length for each weight vector of the
cosine layer; the paper has none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call, grad

from metarun.config.registry import register
from metarun.config.schema import Count, Fraction, NonNegative, Norm, Positive, Whole
from metarun.config.traits import Traits
from metarun.core.inner import copy_weights, draw_networks, own_generator
from metarun.core.objectives import episode_metrics, judged
from metarun.core.types import Backbone, Episode, Examples, Metrics, Params, TaskSpec, Theta


@register("algo", "baseline", Traits(kinds=("classification",), supervised=True, ragged=True))
@dataclass(frozen=True)
class Baseline:
    """Train a classifier, freeze its features, fit a new last layer to the support (Chen et al. 2019)."""

    batch_size: Count  # of a training step: images of all training classes, no tasks
    cosine_scale: Positive | None  # of the cosines that are Baseline++'s logits; null: Baseline's linear layer
    head_lr: Positive
    head_steps: Whole
    momentum: Fraction
    dampening: Fraction
    weight_decay: NonNegative
    norm: Norm
    backbone: Backbone
    spec: TaskSpec  # in training of all classes, at meta-test of a task

    def init(self) -> Theta:
        """The "classifier" is a last layer for all training classes, of which cosines need no bias."""
        theta = draw_networks(self.backbone)
        with own_generator():
            classifier = copy_weights(self.backbone.head(self.spec.output_size))
        if self.cosine_scale is not None:
            del classifier["bias"]
        return {**theta, "classifier": classifier}

    def features(self, theta: Theta, x: Tensor) -> Tensor:
        """x: [n, *input] -> z [n, D]."""
        return functional_call(self.backbone, (theta["backbone"], theta["norm"]), (x,))

    def logits(self, layer: Params, z: Tensor) -> Tensor:
        """W z + b, or scale * cos(z, w_c) (section 3.2). z: [n, D] -> [n, classes]."""
        if self.cosine_scale is None:
            return F.linear(z, layer["weight"], layer["bias"])
        return self.cosine_scale * F.linear(F.normalize(z), F.normalize(layer["weight"]))

    def start(self, z: Tensor, y: Tensor) -> Params:
        """The new layer before its first step. z: [n, D], y: [n]."""
        if self.cosine_scale is None:
            ways, size = self.spec.output_size, z.shape[-1]
            return {"weight": z.new_zeros(ways, size), "bias": z.new_zeros(ways)}
        members = F.one_hot(y, self.spec.output_size).to(z.dtype)  # [n, N]
        return {"weight": members.T @ z / members.sum(0)[:, None]}

    def adapt(self, theta: Theta, support: Examples) -> Params:
        """A new last layer, weight [N, D], by gradient descent on the support's loss."""
        z = self.features(theta, support.x)

        def loss(layer: Params) -> Tensor:
            return F.cross_entropy(self.logits(layer, z), support.y)

        return self.fitted(loss, self.start(z, support.y))

    def fitted(self, loss: Callable[[Params], Tensor], layer: Params) -> Params:
        """Steps of gradient descent with momentum, as torch.optim.SGD takes them."""
        velocity: Params = {}
        for _ in range(self.head_steps):
            gradient = grad(loss)(layer)
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
        """The classifier's loss on a batch of images; there is no support. The accuracy is over all classes."""
        images, y = episode.query
        return judged(self.spec, self.logits(theta["classifier"], self.features(theta, images)), y)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return episode_metrics(self, self.spec, theta, episode)
