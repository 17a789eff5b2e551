"""Losses and metrics of one task, and the steps from a task to them that most methods share."""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import vmap

from metarun.config.registry import lookup, register, traits_of
from metarun.config.traits import HEADLINES, Kind, Metric
from metarun.core.types import PADDING, Attention, Episode, FewShotAlgorithm, Metrics, TaskSpec, Theta

Predict = Callable[[Theta, Any, Tensor], Tensor]  # theta, phi, x [n, *input] -> [n, ...]
TOP = 5  # places of a ranking that nDCG looks at
ANSWERS = "answers"  # beside the metrics of a tested task, and none itself
ONE_BY_ONE = "one_by_one/"  # before the names of what is measured a second time
KEPT = "kept/"  # before the names of what is kept beside the metrics of a tested task
LOGITS, LABELS = f"{KEPT}logits", f"{KEPT}labels"  # of its queries
_read_twice = ContextVar("_read_twice", default=False)
_keep_logits = ContextVar("_keep_logits", default=False)


def is_present(y: Tensor) -> Tensor:
    """Return where y is no padding."""
    return ~y.isnan() if y.is_floating_point() else y != PADDING


@register(
    "metric",
    "accuracy",
    Metric(higher_is_better=True, worst=0.0, tolerance=1.0, unit="%", scale=100.0, decimals=2, chance="1/ways"),
)
def accuracy(prediction: Tensor, y: Tensor) -> Tensor:
    """Fraction of right classes, of logits [n, N]."""
    return (prediction.argmax(-1) == y).to(prediction.dtype).sum() / is_present(y).sum()


@register("metric", "mse", Metric(higher_is_better=False, worst=1e9, tolerance=0.1, relative=True, axis="log"))
def mse(prediction: Tensor, y: Tensor) -> Tensor:
    """Mean squared error of values [n, *output]."""
    there = is_present(y)
    return torch.where(there, prediction - y, 0.0).square().sum() / there.sum()


@register("metric", "mae", Metric(higher_is_better=False, worst=1e9, tolerance=0.02, relative=True))
def mae(prediction: Tensor, y: Tensor) -> Tensor:
    """Mean absolute error of values [n, *output]."""
    there = is_present(y)
    return torch.where(there, prediction - y, 0.0).abs().sum() / there.sum()


@register("metric", "ndcg", Metric(higher_is_better=True, worst=0.0, tolerance=0.02))
def ndcg(prediction: Tensor, y: Tensor) -> Tensor:
    """How good the first TOP places are if values [n, 1] are ranked by their predictions; 1 for the order by y.

    The discounted gain of a ranking (Järvelin and Kekäläinen 2002) is the sum of (2^y - 1) / log2(1 + place). Equal
    predictions share their places: each has the mean discount of them. Takes n^2 comparisons instead of a sort.
    """
    there = is_present(y).flatten()
    gain = torch.where(there, 2 ** torch.where(there, y.flatten(), 0.0) - 1, 0.0)
    places = torch.arange(len(gain), device=y.device, dtype=gain.dtype)
    discounts = torch.where(places < TOP, 1 / (places + 2).log2(), 0.0)
    below = torch.cat([discounts.new_zeros(1), discounts.cumsum(0)])  # [n + 1]: the sum of the first discounts

    def add_up(ranking: Tensor) -> Tensor:
        higher = ((ranking > ranking[:, None]) & there).sum(1)
        equal = ((ranking == ranking[:, None]) & there).sum(1)  # with itself
        return (gain * (below[higher + equal] - below[higher]) / equal.clamp(min=1)).sum()

    best = add_up(gain)
    return add_up(prediction.flatten()) / torch.where(best > 0, best, 1.0)


@register("metric", "delta_auprc", Metric(higher_is_better=True, worst=-1.0, tolerance=0.01, chance=0.0))
def delta_auprc(prediction: Tensor, y: Tensor) -> Tensor:
    """How far the ranking of logits [n, 2] by class 1 is above chance: average precision minus the share of class 1.

    Average precision is the mean, over the examples of class 1, of class 1's share among all ranked as high or higher
    (as scikit-learn's). It takes n^2 comparisons instead of a sort, which ties would not allow.
    """
    ranking, positive, there = prediction[:, 1] - prediction[:, 0], y == 1, is_present(y)
    as_high = (ranking >= ranking[:, None]) & there  # [n, n], row i: who is ranked as high as i
    precision = (as_high & positive).sum(1) / as_high.sum(1).clamp(min=1)
    count = positive.sum()
    return ((precision * positive).sum() / count.clamp(min=1) - count / there.sum()).to(prediction.dtype)


def headline_metric(spec: TaskSpec) -> str:
    """Return the name of the metric that judges such tasks."""
    return spec.metric or HEADLINES[spec.kind]


def loss(kind: Kind, prediction: Tensor, y: Tensor) -> Tensor:
    """Return the mean over the examples: cross-entropy of logits [n, N], or squared error of values [n, *output]."""
    return F.cross_entropy(prediction, y) if kind == "classification" else mse(prediction, y)


def measure(spec: TaskSpec, prediction: Tensor, y: Tensor) -> Metrics:
    """Return the headline metric, and those that the tasks have beside it, detached, to be logged."""
    names = (headline_metric(spec), *spec.beside)
    return {name: lookup("metric", name)(prediction, y).detach() for name in names}


def log_normal_density(mean: Tensor, variance: Tensor, y: Tensor) -> Tensor:
    """log N(y; mean, variance) of each number."""
    return -0.5 * ((y - mean).square() / variance + variance.log() + math.log(2 * math.pi))


def measure_density(means: Tensor, variances: Tensor, y: Tensor) -> Metrics:
    """Measure predictions of values y [n, output] that are mixtures of M normal distributions, [M, n, output] each:
    "nll", the mean of -log p(y), and "coverage", the share of values in the central 95 % of what was predicted.
    """
    nll = math.log(len(means)) - log_normal_density(means, variances, y).logsumexp(0)
    below = torch.special.ndtr((y - means) / variances.sqrt()).mean(0)  # the share of the prediction below y
    return {"nll": nll.mean().detach(), "coverage": ((below > 0.025) & (below < 0.975)).to(y.dtype).mean()}


def measure_test(spec: TaskSpec, prediction: Tensor, y: Tensor) -> Metrics:
    """Measure a tested task: the headline metric and, where tasks share classes, the answers, [N, N]: how many queries
    of the class in the row were taken for that in the column. Inside `keep_logits` of a classification also these.
    """
    found = measure(spec, prediction, y)
    if _keep_logits.get() and spec.kind == "classification":
        found |= {LOGITS: prediction, LABELS: y}
    if spec.kind != "classification" or spec.metric or spec.ways:
        return found
    taken = one_hot(prediction.argmax(-1), spec.output_size).to(prediction.dtype)
    return found | {ANSWERS: one_hot(y, spec.output_size).to(prediction.dtype).T @ taken}


def one_hot(y: Tensor, classes: int) -> Tensor:
    """[...] -> [..., classes], true at the label. PyTorch's own form waits for the device to check the labels."""
    return y[..., None] == torch.arange(classes, device=y.device)


def class_means(z: Tensor, y: Tensor, classes: int) -> Tensor:
    """Return the mean of each class's rows. z: [n, D], y: [n] -> [N, D]; padding is of no class."""
    members = one_hot(y, classes).to(z.dtype)  # [n, N]
    return members.T @ z / members.sum(0)[:, None]


def judge(spec: TaskSpec, prediction: Tensor, y: Tensor) -> tuple[Tensor, Metrics]:
    """Return a differentiable loss, and the metrics to log beside it."""
    return loss(spec.kind, prediction, y), measure(spec, prediction, y)


class Transductive(Protocol):
    """An algorithm that sees queries, and can be told not to."""

    transductive: bool


def adapt_to(algo: FewShotAlgorithm, theta: Theta, episode: Episode) -> Any:
    """Return phi, made from the support; also from the queries' inputs if the method sees queries and is told to."""
    adapt: Callable[..., Any] = algo.adapt
    if traits_of(algo).sees_queries and cast(Transductive, algo).transductive:
        return adapt(theta, episode.support, episode.query.x)
    return adapt(theta, episode.support)


def episode_loss(algo: FewShotAlgorithm, spec: TaskSpec, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
    """Adapt to the support, predict the queries, judge them: the outer objective of most methods."""
    phi = adapt_to(algo, theta, episode)
    return judge(spec, algo.predict(theta, phi, episode.query.x), episode.query.y)


@contextmanager
def read_twice() -> Iterator[None]:
    """Let tests inside also measure, under names after ONE_BY_ONE, queries that are predicted one by one, from the same
    adaptation: where that is not what `norm` asks for, and the method uses the functions below.
    """
    token = _read_twice.set(True)
    try:
        yield
    finally:
        _read_twice.reset(token)


@contextmanager
def keep_logits(kept: bool) -> Iterator[None]:
    """Let tests inside also return the logits [n, N] and labels [n] of queries, if the method uses `measure_test`."""
    token = _keep_logits.set(kept)
    try:
        yield
    finally:
        _keep_logits.reset(token)


def predict_queries(
    algo: FewShotAlgorithm, theta: Theta, phi: Any, episode: Episode, predict: Predict | None = None
) -> Tensor:
    """Predict the queries: in one batch, or, with `norm: per_query`, each in a batch with the support.

    predict: what else to compute of each query in the same way, instead of the algorithm's own `predict`.
    """
    predict = predict or algo.predict
    if algo.norm == "per_query":
        return predict_one_by_one(predict, theta, phi, episode)
    return predict(theta, phi, episode.query.x)


def predict_one_by_one(predict: Predict, theta: Theta, phi: Any, episode: Episode) -> Tensor:
    """Predict the queries, each in a batch with the support."""
    support, query = episode

    def alone(x: Tensor) -> Tensor:
        return predict(theta, phi, torch.cat([support.x, x[None]]))[-1]

    # as many as take no more memory than one batch of all queries, or one where the support alone is larger than that
    at_once = max(1, len(query.y) // (len(support.y) + 1))
    return vmap(alone, chunk_size=at_once)(query.x)


def attend_to_support(algo: FewShotAlgorithm, weigh: Predict, theta: Theta, episode: Episode) -> Attention:
    """Return where queries look, as a test predicts them. weigh: as `predict`, weights [q, K, columns]."""
    weights = predict_queries(algo, theta, adapt_to(algo, theta, episode), episode, weigh)
    return Attention(weights, episode.query.y, episode.support.y)


def episode_metrics(algo: FewShotAlgorithm, spec: TaskSpec, theta: Theta, episode: Episode) -> Metrics:
    """Return the metrics after adaptation, and the answers."""
    phi = adapt_to(algo, theta, episode)
    return measure_queries(algo, spec, theta, phi, episode, predict_queries(algo, theta, phi, episode))


def measure_queries(
    algo: FewShotAlgorithm, spec: TaskSpec, theta: Theta, phi: Any, episode: Episode, prediction: Tensor
) -> Metrics:
    """Measure the prediction of the queries, and inside `read_twice` also that of each by itself."""
    found = measure_test(spec, prediction, episode.query.y)
    if not _read_twice.get() or algo.norm == "per_query":
        return found
    beside = measure_test(spec, predict_one_by_one(algo.predict, theta, phi, episode), episode.query.y)
    return found | {ONE_BY_ONE + name: value for name, value in beside.items()}


def metrics_by_step(
    algo: FewShotAlgorithm, spec: TaskSpec, theta: Theta, episode: Episode, states: Iterable[Any]
) -> Metrics:
    """Return the metrics after the last of an inner loop's states, and the headline after each as a vector [J + 1].

    The vector is left out where queries are predicted one by one, because it would multiply a long test.
    """
    if algo.norm == "per_query":
        return episode_metrics(algo, spec, theta, episode)
    name, curve = headline_metric(spec), []
    for phi in states:
        prediction = predict_queries(algo, theta, phi, episode)
        curve.append(measure(spec, prediction, episode.query.y)[name])
    found = measure_queries(algo, spec, theta, phi, episode, prediction)
    return found | {f"{name}_by_step": torch.stack(curve)}
