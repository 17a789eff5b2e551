"""Meta-validation and meta-test: fixed tasks, one score per task, mean and 95 % interval."""

import hashlib
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metarun.config.registry import declaration
from metarun.config.schema import EvalSettings
from metarun.core.batch import Execution, chunks, over_tasks
from metarun.core.norm import use_statistics
from metarun.core.seeding import generator_for
from metarun.core.types import Algorithm, Backbone, Episode, Examples, Metrics, Params, Split, TaskSource, Theta
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.ensemble import Ensemble

BLOCK = 50  # tasks drawn from one generator: fixed, so that the tasks depend on no batch or chunk size


@dataclass(frozen=True)
class Scores:
    """What was measured on each task, and which tasks they were."""

    per_task: Metrics  # name -> [tasks, ...]
    task_hash: str  # of inputs and labels, task by task: two equal hashes mean the same test

    @property
    def tasks(self) -> int:
        return len(next(iter(self.per_task.values())))

    def summary(self) -> dict[str, Any]:
        """name -> {"mean", "ci95"}; lists for vector metrics. ci95 is 1.96 std / sqrt(tasks)."""
        return {
            name: {
                "mean": values.double().mean(0).tolist(),
                "ci95": (1.96 * values.double().std(0) / math.sqrt(len(values))).tolist(),
            }
            for name, values in self.per_task.items()
        }


def fixed_tasks(source: TaskSource, count: int, seed: int, split: Split, ranks: Ranks = ALONE) -> Iterator[Episode]:
    """The first `count` of an endless list of tasks that `seed` and `split` determine, block by block; of several
    ranks each gets its share of the blocks, in order.

    Drawn on the CPU whatever the device, so that the list is the same on every machine. A source that has less than
    a block of tasks gives each of them once.
    """
    for block in range(*ranks.share(math.ceil(count / BLOCK))):
        tasks = source.sample(BLOCK, generator_for(seed, split, block))
        if block > 0 and len(tasks.query.y) < BLOCK:  # a short list, all of which is in block 0
            return
        yield next(iter(chunks(tasks, min(BLOCK, count - block * BLOCK))))


@torch.no_grad()
def evaluate(
    algo: Algorithm | Ensemble,
    theta: Theta,
    source: TaskSource,
    *,
    tasks: int,
    seed: int,
    split: Split,
    tasks_per_chunk: int,
    execution: Execution,
    progress: bool = False,
    ranks: Ranks = ALONE,
) -> Scores:
    """Score `tasks` fixed tasks by the algorithm's own `task_metrics`, the same on every rank, each of which does
    its share. The chunk size changes memory only.
    """
    scored: list[Metrics] = []
    prints: list[bytes] = []
    with tqdm(total=tasks, desc=split, unit="task", disable=not progress, leave=False) as bar:
        for block in fixed_tasks(source, tasks, seed, split, ranks):
            prints.append(_fingerprint(block))
            for chunk in chunks(block, tasks_per_chunk):
                scored.append(over_tasks(lambda task: algo.task_metrics(theta, task), chunk, execution))
                bar.update(len(chunk.query.y) * ranks.count)
    mine = [{name: value.cpu() for name, value in metrics.items()} for metrics in scored]
    everyones = [part for parts in ranks.gathered(mine) for part in parts]
    digest = hashlib.sha256(b"".join(part for parts in ranks.gathered(prints) for part in parts))
    return Scores({name: torch.cat([part[name] for part in everyones]) for name in everyones[0]}, digest.hexdigest())


def _fingerprint(tasks: Episode) -> bytes:
    """Inputs and labels, class by class, to three decimals: devices may differ in the last bit of a float."""

    def by_class(part: Examples) -> Examples:
        order = part.y.argsort(dim=1, stable=True)  # none where labels are in order, as samplers give them
        return Examples(part.x[torch.arange(len(order), device=order.device)[:, None], order], part.y.gather(1, order))

    if not tasks.query.y.is_floating_point():
        tasks = Episode(*map(by_class, tasks))

    def rounded(value: Tensor) -> bytes:
        return (value * 1000).round().to(torch.int32).cpu().numpy().tobytes()

    return hashlib.sha256(b"".join(rounded(field) for part in tasks for field in part)).digest()


@dataclass(frozen=True)
class Tester:
    """An algorithm with its meta-test settings, and the tasks to test it on."""

    algo: Algorithm
    backbone: Backbone  # the algorithm's own copy: test statistics never reach the training
    source: TaskSource
    how: EvalSettings
    split: Split

    def normalise_by(self, statistics: Params) -> None:
        """Where this test asks for running averages."""
        use_statistics(self.backbone, statistics if self.how.algo["norm"] == "running" else {})

    def scores(self, theta: Theta, statistics: Params, tasks: int, execution: Execution, ranks: Ranks) -> Scores:
        """Test `theta` by the same `adapt` as in training."""
        self.normalise_by(statistics)
        return self.evaluated(self.algo, theta, tasks, execution, ranks)

    def evaluated(
        self, algo: Algorithm | Ensemble, theta: Theta, tasks: int, execution: Execution, ranks: Ranks
    ) -> Scores:
        return evaluate(
            algo,
            theta,
            self.source,
            tasks=tasks,
            seed=self.how.seed,
            split=self.split,
            tasks_per_chunk=self.how.tasks_per_chunk,
            execution=execution,
            progress=self.split == "test" and ranks.rank == 0 and sys.stderr.isatty(),
            ranks=ranks,
        )


def inductive(algo: Mapping[str, Any]) -> dict[str, Any]:
    """The settings by which queries know nothing of each other."""
    sees_queries = declaration("algo", algo["name"]).traits.sees_queries
    return {"norm": "per_query"} | ({"transductive": False} if sees_queries else {})
