"""What a model's scores are worth beside its decisions: probabilities, sets of answers, and the score of what is of no
class. All of it is read from the logits of the queries of whole tasks.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core.batch import Execution
from metarun.core.objectives import LABELS, LOGITS, adapt_to, is_present, predict_queries
from metarun.core.types import Algorithm, Episode, Examples, FewShotAlgorithm, Metrics, TaskShape, TaskSpec, Theta
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.engine.distributed import Ranks
from metarun.engine.evaluate import Model, Scores, Tester

LOW, HIGH, STEPS = 1e-3, 1e3, 121  # the temperatures that are tried, of equal ratios
SHARE = 0.9  # of the queries whose class is to be in their set


class Answers(NamedTuple):
    """The logits of the queries of tasks, [T, n, N], and their labels [T, n]."""

    logits: Tensor
    y: Tensor


@dataclass(frozen=True)
class Answering:
    """A method whose tasks are measured by its answers themselves."""

    algo: FewShotAlgorithm

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The logits [n, N] of a task's queries, and the labels [n]."""
        logits = predict_queries(self.algo, theta, adapt_to(self.algo, theta, episode), episode)
        return {LOGITS: logits, LABELS: episode.query.y}


def collect_answers(tester: Tester, models: Sequence[Model], execution: Execution, ranks: Ranks) -> Answers | None:
    """Return a single model's answers to the tester's tasks; None where they are no classification by logits, or not
    finite.
    """
    algo = tester.algo
    if len(models) > 1 or not isinstance(algo, FewShotAlgorithm) or tester.source.spec.kind != "classification":
        return None
    answering = replace(tester, algo=cast(Algorithm, Answering(algo)))
    return read_answers(answering.score(models, tester.row.tasks, execution, ranks), tester.row.tasks)


def read_answers(scores: Scores, tasks: int) -> Answers | None:
    """Return the answers to the first tasks that a test has kept; None where it has none, or they are not finite."""
    if LOGITS not in scores.per_task:
        return None
    answers = Answers(scores.per_task[LOGITS][:tasks].double(), scores.per_task[LABELS][:tasks])
    return answers if bool(answers.logits.isfinite().all()) else None


# the temperature -----------------------------------------------------------------------------------------------------


def fit_temperature(answers: Answers, cautious: bool = False) -> float | None:
    """Return the one number of least cross-entropy by which logits are divided; it changes no decision.

    Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, section 4.2. None if
    there is none, as where all answers are right, unless it is `cautious`: then each of n labels counts as true with
    the probability (n + 1) / (n + 2), as in Platt 1999, "Probabilistic outputs for support vector machines".
    """
    logits, y = answers.logits.flatten(0, 1), answers.y.flatten()
    ways = logits.shape[-1]
    doubt = ways / (ways - 1) / (len(y) + 2) if cautious else 0.0  # spread over all classes, the true one too
    return minimise(torch.stack([F.cross_entropy(logits / t, y, label_smoothing=doubt) for t in temperatures()]))


def temperatures() -> list[float]:
    """The temperatures that are tried, ascending."""
    return [LOW * (HIGH / LOW) ** (i / (STEPS - 1)) for i in range(STEPS)]


def minimise(losses: Tensor) -> float | None:
    """The temperature at the lowest point of a parabola through the least of the losses [STEPS] and its neighbours, in
    the logarithm of the temperature. None if it is at an end, or a loss is not finite.
    """
    least = int(losses.argmin())
    if not bool(losses.isfinite().all()) or not 0 < least < STEPS - 1:
        return None
    before, lowest, after = losses[least - 1 : least + 2].tolist()
    bend = before - 2 * lowest + after
    shift = (before - after) / (2 * bend) if bend > 0 else 0.0
    return LOW * math.exp((least + shift) * math.log(HIGH / LOW) / (STEPS - 1))


# sets of answers -----------------------------------------------------------------------------------------------------


def fit_threshold(answers: Answers, temperature: float) -> float:
    """Return the probability from which on a class is in a query's set, so that SHARE of the sets hold the true one.

    Split conformal prediction (Sadinle, Lei, Wasserman 2019, https://arxiv.org/abs/1609.00451): of n queries of tasks
    that are drawn as later ones are, the probability of the true class is as high in ceil(SHARE (n + 1)) or more. 0,
    sets of all classes, for fewer than 9 queries.
    """
    probabilities, y = (answers.logits / temperature).softmax(-1).flatten(0, 1), answers.y.flatten()
    there = is_present(y)
    of_truth = probabilities[there].gather(1, y[there][:, None])[:, 0].sort(descending=True).values
    count = math.ceil(SHARE * (len(of_truth) + 1))
    return float(of_truth[count - 1]) if count <= len(of_truth) else 0.0


def choose_sets(probabilities: Tensor, threshold: float) -> Tensor:
    """Return which classes are in the set of each query: those from the threshold on, and the likeliest. [..., N]."""
    return (probabilities >= threshold) | (probabilities >= probabilities.amax(-1, keepdim=True))


def measure_sets(answers: Answers, temperature: float, threshold: float) -> tuple[Tensor, Tensor]:
    """Return the share of each task's sets that hold the true class, and their mean size: [T], [T]."""
    sets, there = choose_sets((answers.logits / temperature).softmax(-1), threshold), is_present(answers.y)
    held = sets.gather(-1, torch.where(there, answers.y, 0)[..., None])[..., 0] & there
    size = (sets.sum(-1) * there).sum(-1)
    return held.sum(-1) / there.sum(-1), size / there.sum(-1)


# queries of no class -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class OpenTasks:
    """Tasks of `known` classes, with queries of further classes, which have labels from `known` on and no support."""

    source: EpisodeSampler  # of tasks of all these classes
    known: int

    @property
    def spec(self) -> TaskSpec:
        return self.source.spec._replace(output_size=self.known)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Any:
        support, query = self.source.sample(num_tasks, generator)
        shown = self.known * self.source.shape.shots  # class by class
        return Episode(Examples(support.x[:, :shown], support.y[:, :shown]), query)


def open_tasks(tester: Tester) -> Tester | None:
    """Let queries of as many unknown classes as known ones join a tester's tasks, or of as many as there are.

    None where there are none, or tasks are no samples of classes.
    """
    source = tester.source
    if not isinstance(source, EpisodeSampler):
        return None
    ways, shots, queries = source.shape
    more = min(ways, len(source.table) // source.variants - ways)
    if more < 1:
        return None
    larger = replace(source, shape=TaskShape(ways + more, shots, queries), dirichlet=None)
    return replace(tester, source=OpenTasks(larger, ways))


def measure_unknown(answers: Answers) -> Tensor:
    """Return the AUROC of the largest logit, by which known classes are told from unknown ones, of each task: [T].

    It is the share of pairs of a query of a known class and one of an unknown class in which the first one's largest
    logit is larger; ties count half (Vaze et al. 2022, https://arxiv.org/abs/2110.06207, has this score).
    """
    largest, known = answers.logits.amax(-1), answers.y < answers.logits.shape[-1]

    def compare(largest: Tensor, known: Tensor) -> Tensor:
        apart = largest[known][:, None] - largest[~known]
        return ((apart > 0).double() + (apart == 0).double() / 2).mean()

    return torch.stack([compare(*task) for task in zip(largest, known)])
