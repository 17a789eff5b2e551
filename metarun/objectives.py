"""What a task's predictions are judged by, for every kind of task."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from metarun.types import Algorithm, Episode, Examples, Kind, Metrics, Theta

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


def judged(kind: Kind, prediction: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
    """A differentiable loss, and the headline figure to log beside it."""
    return loss(kind, prediction, y), {HEADLINE[kind]: score(kind, prediction, y).detach()}


def episode_loss(algo: Algorithm, kind: Kind, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
    """Adapt to the support, predict the queries, judge: the outer objective of most methods."""
    phi = algo.adapt(theta, episode.support)
    return judged(kind, algo.predict(theta, phi, episode.query.x), episode.query.y)


def episode_metrics(algo: Algorithm, kind: Kind, theta: Theta, episode: Episode) -> Metrics:
    """The headline figure with all queries in one batch, and, where batch statistics make that transductive,
    `..._inductive`: each query predicted in a batch with the support alone (Nichol et al. 2018, section 6.1).
    """
    support, query = episode
    phi = algo.adapt(theta, support)
    name = HEADLINE[kind]
    metrics = {name: score(kind, algo.predict(theta, phi, query.x), query.y)}
    if algo.norm == "batch":

        def alone(x: Tensor) -> Tensor:
            return algo.predict(theta, phi, torch.cat([support.x, x[None]]))[-1]

        metrics[f"{name}_inductive"] = score(kind, vmap(alone)(query.x), query.y)
    return metrics


def scores_by_step(
    algo: Algorithm, kind: Kind, theta: Theta, query: Examples, states: Iterable[Theta]
) -> Metrics:
    """The headline figure after each state of an inner loop, as one vector [J + 1]."""
    scores = [score(kind, algo.predict(theta, phi, query.x), query.y) for phi in states]
    return {f"{HEADLINE[kind]}_by_step": torch.stack(scores)}
