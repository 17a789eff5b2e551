"""Adversarial queries: Goodfellow et al. 2015, https://arxiv.org/abs/1412.6572 (FGSM), and Madry et al. 2018,
https://arxiv.org/abs/1706.06083 (PGD), through an adapted predictor, and training on them.

Adversarial querying (Goldblum et al. 2020, https://arxiv.org/abs/1910.00982) descends the loss of attacked queries; the
support, and so adaptation, stays clean. Their attack has a random start and 7 steps in training.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from metarun.config.registry import traits_of
from metarun.core import objectives
from metarun.core.inner import gradient_of
from metarun.core.objectives import Transductive, adapt_to
from metarun.core.seeding import hash_uniform
from metarun.core.types import Episode, Examples, FewShotAlgorithm, Metrics, TaskSpec, Theta
from metarun.datasets.preprocessing import Pictures, from_network, to_network

Answer = Callable[[FewShotAlgorithm, Theta, object, Episode], Tensor]  # of the queries, from theta and phi
Loss = Callable[[Tensor], Tensor]  # of pixels [n, C, S, S]


@dataclass(frozen=True)
class Adversarial:
    """A method that is trained on attacked queries."""

    algo: FewShotAlgorithm
    spec: TaskSpec
    form: Pictures
    radius: float  # largest change of a value in 0..1
    step: float  # of PGD
    steps: int

    def init(self) -> Theta:
        return self.algo.init()

    def task_loss(self, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        """The method's own outer loss of attacked queries; the attack itself counts as data."""
        return self.algo.task_loss(theta, self.attack(theta, episode))

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        return self.algo.task_metrics(theta, episode)

    @torch.no_grad()
    def attack(self, theta: Theta, episode: Episode) -> Episode:
        """Change a task's queries, all jointly, so that they are mistaken."""
        fixed = {c: {name: p.detach() for name, p in params.items()} for c, params in theta.items()}
        predict = build_predictor(self.form, self.algo, fixed, episode, predict_together)
        pixels, y = from_network(self.form, episode.query.x), episode.query.y
        start = draw_start(pixels, self.radius)
        pixels = ascend(
            lambda x: objectives.loss(self.spec.kind, predict(x), y), pixels, start, self.radius, self.step, self.steps
        )
        return change_queries(self.form, episode, pixels)


def predict_together(algo: FewShotAlgorithm, theta: Theta, phi: object, episode: Episode) -> Tensor:
    """Predict the queries in one batch, as most methods do in training."""
    return algo.predict(theta, phi, episode.query.x)


def build_predictor(
    form: Pictures, algo: FewShotAlgorithm, theta: Theta, episode: Episode, answer: Answer
) -> Callable[[Tensor], Tensor]:
    """Return the function from the queries' pixels to their predictions. Adaptation is part of it where it sees the
    queries; otherwise it is done once.
    """
    sees_queries = traits_of(algo).sees_queries and cast(Transductive, algo).transductive
    before = None if sees_queries else adapt_to(algo, theta, episode)

    def predict(pixels: Tensor) -> Tensor:
        task = change_queries(form, episode, pixels)
        return answer(algo, theta, adapt_to(algo, theta, task) if sees_queries else before, task)

    return predict


def change_queries(form: Pictures, episode: Episode, pixels: Tensor) -> Episode:
    """The task with other pixels [n, C, S, S] of its queries; what else there is to an input stays."""
    support, (x, y) = episode
    return Episode(support, Examples(torch.cat([to_network(form, pixels), x[:, form.channels :]], 1), y))


def draw_start(pixels: Tensor, radius: float) -> Tensor:
    """Uniform numbers within the radius, which follow from the task's own pixels: each task starts elsewhere."""
    salt = (1000 * pixels).round().sum()
    return radius * hash_uniform(pixels.numel(), salt).view_as(pixels)


def ascend(loss: Loss, pixels: Tensor, start: Tensor, radius: float, step: float, steps: int) -> Tensor:
    """Go up the loss by the sign of its gradient, no further than `radius` from the pixels and within 0..1."""
    low, high = (pixels - radius).clamp(min=0), (pixels + radius).clamp(max=1)
    x = (pixels + start).clamp(low, high)
    for _ in range(steps):
        slope = gradient_of(lambda at: loss(at["query"]["x"]), {"query": {"x": x}})["query"]["x"]
        x = (x + step * slope.sign()).clamp(low, high)
    return x
