"""What a task's predictions are judged by, for every kind of task."""

from collections.abc import Callable, Iterable
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from metarun.config.registry import lookup, register, traits_of
from metarun.config.traits import HEADLINES, Kind, Metric
from metarun.core.types import PADDING, Algorithm, Episode, Metrics, TaskSpec, Theta


def present(y: Tensor) -> Tensor:
    """Where y is no padding."""
    return ~y.isnan() if y.is_floating_point() else y != PADDING


@register(
    "metric", "accuracy", Metric(higher_is_better=True, worst=0.0, tolerance=1.0, unit="%", scale=100.0, decimals=2)
)
def accuracy(prediction: Tensor, y: Tensor) -> Tensor:
    """Fraction of right classes, of logits [n, N]."""
    return (prediction.argmax(-1) == y).to(prediction.dtype).sum() / present(y).sum()


@register("metric", "mse", Metric(higher_is_better=False, worst=1e9, tolerance=0.1, relative=True, axis="log"))
def mse(prediction: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of values [n, *output]."""
    there = present(y)
    return torch.where(there, prediction - y, 0.0).square().sum() / there.sum()


@register("metric", "delta_auprc", Metric(higher_is_better=True, worst=-1.0, tolerance=0.01))
def delta_auprc(prediction: Tensor, y: Tensor) -> Tensor:
    """How far the ranking of logits [n, 2] by class 1 is above chance: average precision minus the share of class 1.

    Average precision is the mean, over the examples of class 1, of class 1's share among all ranked as high or higher
    (as scikit-learn's). It takes n^2 comparisons instead of a sort, which ties would not allow.
    """
    ranking, positive, there = prediction[:, 1] - prediction[:, 0], y == 1, present(y)
    as_high = (ranking >= ranking[:, None]) & there  # [n, n], row i: who is ranked as high as i
    precision = (as_high & positive).sum(1) / as_high.sum(1).clamp(min=1)
    count = positive.sum()
    return ((precision * positive).sum() / count.clamp(min=1) - count / there.sum()).to(prediction.dtype)


def metric_of(spec: TaskSpec) -> str:
    """The name of the headline figure."""
    return spec.metric or HEADLINES[spec.kind]


def loss(kind: Kind, prediction: Tensor, y: Tensor) -> Tensor:
    """Mean over the examples: cross-entropy of logits [n, N], or squared error of values [n, *output]."""
    return F.cross_entropy(prediction, y) if kind == "classification" else mse(prediction, y)


def score(spec: TaskSpec, prediction: Tensor, y: Tensor) -> Tensor:
    """The headline figure of a task."""
    figure: Tensor = lookup("metric", metric_of(spec))(prediction, y)
    return figure


def headline(spec: TaskSpec, prediction: Tensor, y: Tensor) -> Metrics:
    """The same under its name, to be logged."""
    return {metric_of(spec): score(spec, prediction, y).detach()}


def one_hot(y: Tensor, classes: int) -> Tensor:
    """[...] -> [..., classes], true at the label. PyTorch's own reads labels back from the device to check them."""
    return y[..., None] == torch.arange(classes, device=y.device)


def judged(spec: TaskSpec, prediction: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
    """A differentiable loss, and the headline figure to log beside it."""
    return loss(spec.kind, prediction, y), headline(spec, prediction, y)


class Transductive(Protocol):
    """An algorithm that sees queries, and can be told not to."""

    transductive: bool


def adapted(algo: Algorithm, theta: Theta, episode: Episode) -> Any:
    """phi, from the support; of a method that sees queries and is told to, from their inputs as well."""
    adapt: Callable[..., Any] = algo.adapt
    if traits_of(algo).sees_queries and cast(Transductive, algo).transductive:
        return adapt(theta, episode.support, episode.query.x)
    return adapt(theta, episode.support)


def episode_loss(algo: Algorithm, spec: TaskSpec, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
    """Adapt to the support, predict the queries, judge: the outer objective of most methods."""
    phi = adapted(algo, theta, episode)
    return judged(spec, algo.predict(theta, phi, episode.query.x), episode.query.y)


def answers(algo: Algorithm, theta: Theta, phi: Any, episode: Episode) -> Tensor:
    """Predictions for the queries: in one batch, or, with `norm: per_query`, each in a batch with the support."""
    support, query = episode
    if algo.norm != "per_query":
        return algo.predict(theta, phi, query.x)

    def alone(x: Tensor) -> Tensor:
        return algo.predict(theta, phi, torch.cat([support.x, x[None]]))[-1]

    # as many as take no more memory than one batch of all queries, or one where the support alone is larger than that
    at_once = max(1, len(query.y) // (len(support.y) + 1))
    return vmap(alone, chunk_size=at_once)(query.x)


def episode_metrics(algo: Algorithm, spec: TaskSpec, theta: Theta, episode: Episode) -> Metrics:
    """The headline figure after adaptation."""
    phi = adapted(algo, theta, episode)
    return headline(spec, answers(algo, theta, phi, episode), episode.query.y)


def metrics_by_step(algo: Algorithm, spec: TaskSpec, theta: Theta, episode: Episode, states: Iterable[Any]) -> Metrics:
    """The headline figure after the last of an inner loop's states, and after each, as a vector [J + 1].

    The vector is left out where queries are predicted one by one: it would multiply a long test.
    """
    if algo.norm == "per_query":
        return episode_metrics(algo, spec, theta, episode)
    scores = torch.stack([score(spec, answers(algo, theta, phi, episode), episode.query.y) for phi in states])
    name = metric_of(spec)
    return {name: scores[-1], f"{name}_by_step": scores}
