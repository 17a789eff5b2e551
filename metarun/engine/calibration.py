"""The temperature of a model's probabilities, fitted on validation tasks.

Guo et al. 2017, "On Calibration of Modern Neural Networks", https://arxiv.org/abs/1706.04599, section 4.2: one number
that all logits are divided by, of least cross-entropy. It changes no decision.
"""

import math
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor

from metarun.core.batch import Execution
from metarun.core.objectives import adapt_to, loss, predict_queries
from metarun.core.types import Algorithm, Episode, FewShotAlgorithm, Metrics, Theta
from metarun.engine.distributed import Ranks
from metarun.engine.evaluate import Model, Tester

LOW, HIGH, STEPS = 1e-3, 1e3, 121  # the temperatures that are tried, of equal ratios


def fit_temperature(tester: Tester, model: Model, execution: Execution, ranks: Ranks) -> float | None:
    """Return the temperature of least cross-entropy of a model's answers to the tester's tasks.

    None where there is none: the tasks are no classification by logits, or the cross-entropy is not finite.
    """
    algo = tester.algo
    if not isinstance(algo, FewShotAlgorithm) or tester.source.spec.kind != "classification":
        return None
    judged = replace(tester, algo=cast(Algorithm, Judged(algo)))
    scores = judged.score([model], tester.row.tasks, execution, ranks)
    return minimise(scores.per_task["loss_by_temperature"].double().mean(0))


@dataclass(frozen=True)
class Judged:
    """A method whose answers are judged by their cross-entropy at each temperature."""

    algo: FewShotAlgorithm

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """The loss at each temperature: [STEPS]."""
        logits = predict_queries(self.algo, theta, adapt_to(self.algo, theta, episode), episode)
        y = episode.query.y
        return {"loss_by_temperature": torch.stack([loss("classification", logits / t, y) for t in temperatures()])}


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
