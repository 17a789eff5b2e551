"""Several checkpoints of one run as one model: each adapts to a task by itself, and their class probabilities are
averaged.

Antoniou et al. 2019, https://arxiv.org/abs/1810.09502, test MAML++ in this way, with the five checkpoints that
validated best (their code averages logits). The rows of such a test say how many models it took.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.core.objectives import adapt_to, measure_test, predict_queries
from metarun.core.types import Episode, FewShotAlgorithm, Metrics, TaskSpec, Theta


@dataclass(frozen=True)
class Ensemble:
    """Trained models of one method, for the meta-test alone."""

    members: Sequence[tuple[FewShotAlgorithm, Theta]]  # each with a network of its own running statistics
    spec: TaskSpec

    def probabilities(self, episode: Episode) -> Tensor:
        """Return the mean of the members' softmax for the queries: [n, N]."""
        found = []
        for algo, theta in self.members:
            phi = adapt_to(algo, theta, episode)
            found.append(predict_queries(algo, theta, phi, episode).softmax(-1))
        return torch.stack(found).mean(0)

    def task_metrics(self, theta: Theta, episode: Episode) -> Metrics:
        """Return the headline metric and the answers; `theta` is not read, because the members have theirs."""
        return measure_test(self.spec, self.probabilities(episode), episode.query.y)
