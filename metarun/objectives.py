"""What a task's predictions are judged by, for every kind of task."""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from metarun.types import Algorithm, Episode, Kind, Metrics, Theta

HEADLINE: dict[Kind, str] = {"classification": "accuracy", "regression": "mse"}
HIGHER_IS_BETTER = {"accuracy": True, "mse": False}


def loss(kind: Kind, prediction: Tensor, y: Tensor) -> Tensor:
    """Mean over the examples: cross-entropy of logits [n, N], or squared error of values [n, *output]."""
    return F.cross_entropy(prediction, y) if kind == "classification" else F.mse_loss(prediction, y)


def score(kind: Kind, prediction: Tensor, y: Tensor) -> Tensor:
    """The headline figure of a task: fraction of right classes, or mean squared error."""
    if kind == "classification":
        return (prediction.argmax(-1) == y).to(prediction.dtype).mean()
    return F.mse_loss(prediction, y)


def one_hot(y: Tensor, classes: int) -> Tensor:
    """[n] -> [n, classes], true at the label. PyTorch's own reads the labels back from the device to check them."""
    return y[:, None] == torch.arange(classes, device=y.device)


def judged(kind: Kind, prediction: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
    """A differentiable loss, and the headline figure to log beside it."""
    return loss(kind, prediction, y), {HEADLINE[kind]: score(kind, prediction, y).detach()}


def episode_loss(algo: Algorithm, kind: Kind, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
    """Adapt to the support, predict the queries, judge: the outer objective of most methods."""
    phi = algo.adapt(theta, episode.support)
    return judged(kind, algo.predict(theta, phi, episode.query.x), episode.query.y)


def answers(algo: Algorithm, theta: Theta, phi: Any, episode: Episode) -> Tensor:
    """Predictions for the queries: in one batch, or, with `norm: per_query`, each in a batch with the support."""
    support, query = episode
    if algo.norm != "per_query":
        return algo.predict(theta, phi, query.x)

    def alone(x: Tensor) -> Tensor:
        return algo.predict(theta, phi, torch.cat([support.x, x[None]]))[-1]

    return vmap(alone)(query.x)


def episode_metrics(algo: Algorithm, kind: Kind, theta: Theta, episode: Episode) -> Metrics:
    """The headline figure after adaptation."""
    phi = algo.adapt(theta, episode.support)
    return {HEADLINE[kind]: score(kind, answers(algo, theta, phi, episode), episode.query.y)}


def metrics_by_step(algo: Algorithm, kind: Kind, theta: Theta, episode: Episode, states: Iterable[Any]) -> Metrics:
    """The headline figure after the last of an inner loop's states, and after each, as a vector [J + 1].

    The vector is left out where queries are predicted one by one: it would multiply a long test.
    """
    if algo.norm == "per_query":
        return episode_metrics(algo, kind, theta, episode)
    scores = torch.stack([score(kind, answers(algo, theta, phi, episode), episode.query.y) for phi in states])
    return {HEADLINE[kind]: scores[-1], f"{HEADLINE[kind]}_by_step": scores}
