"""Meta-validation and meta-test: the rows of a result, fixed tasks, one score per task, mean and 95 % interval."""

import copy
import hashlib
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from tqdm import tqdm

from metarun.config.registry import declaration
from metarun.config.schema import EvalSettings, Settings, apply_data_changes, apply_test_changes
from metarun.core.batch import Execution, count_tasks, map_tasks, take
from metarun.core.batch import split as split_tasks
from metarun.core.norm import use_statistics
from metarun.core.objectives import ANSWERS, keep_logits, read_twice
from metarun.core.seeding import generator_for
from metarun.core.statistics import over_tasks
from metarun.core.types import (
    Algorithm,
    Backbone,
    ClassSource,
    Dataset,
    Episode,
    Examples,
    Metrics,
    Params,
    Split,
    Task,
    TaskSource,
    Theta,
    Trial,
)
from metarun.datasets.sampling.order import InOrder
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.ensemble import Ensemble

BLOCK = 50  # tasks drawn from one generator: fixed, so that the tasks depend on no batch or chunk size


@dataclass(frozen=True)
class Scores:
    """What was measured on each task, and which tasks they were."""

    per_task: Metrics = field(default_factory=dict)  # name -> [tasks, ...]
    prints: tuple[bytes, ...] = ()  # of each block of tasks, a hash of its inputs and labels

    @property
    def tasks(self) -> int:
        """The number of tasks."""
        return len(next(iter(self.per_task.values()), ()))

    @property
    def metrics(self) -> Metrics:
        """What was measured, without the answers."""
        return {name: values for name, values in self.per_task.items() if name != ANSWERS}

    @property
    def task_hash(self) -> str:
        """Of all inputs and labels: two equal hashes mean the same test."""
        return hashlib.sha256(b"".join(self.prints)).hexdigest()

    def part(self, prefix: str, inside: bool) -> "Scores":
        """What was measured under names after a prefix, or under the others."""
        found = {
            name.removeprefix(prefix): values
            for name, values in self.per_task.items()
            if name.startswith(prefix) == inside
        }
        return Scores(found, self.prints)

    def __add__(self, other: "Scores") -> "Scores":
        """These tasks, and then the other's."""
        if not (self.per_task and other.per_task):
            return self if self.per_task else other
        joined = {  # what is kept of the first tasks alone ends with these
            name: torch.cat([values, other.per_task[name]]) if name in other.per_task else values
            for name, values in self.per_task.items()
        }
        return Scores(joined, self.prints + other.prints)

    def summarise(self) -> dict[str, Any]:
        """Return name -> {"mean", "ci95"}, lists for vector metrics; ci95 as `over_tasks`, None for a single task."""
        arrays = {name: values.double().numpy() for name, values in self.metrics.items()}
        intervals = {name: over_tasks(values) for name, values in arrays.items()}
        return {
            name: {"mean": values.mean(0).tolist(), "ci95": None if interval is None else interval.tolist()}
            for (name, values), interval in zip(arrays.items(), intervals.values())
        }


NOTHING = Scores()
Keep = Callable[[Scores], None]


def forget(scores: Scores) -> None:
    """Keep nothing of a test that is not finished."""


class Model(NamedTuple):
    """What a checkpoint gives to a test."""

    theta: Theta
    statistics: Params  # of norm layers over training tasks; empty if no row asks for them


def plan_rows(settings: Settings, has_norm: bool) -> dict[str, EvalSettings]:
    """Return the rows of a result, each with the whole of its `algo`: "test", each of the variants, and beside every
    transductive row an `_inductive` one, in which queries are predicted one by one and have no part in adaptation; for
    each of the dataset's rules also one on the tasks of "test", and of variants that differ in more than the method.

    `has_norm`: the backbone has norm layers.
    """
    test = replace(settings.eval, algo=apply_test_changes(settings.algo, settings.eval.algo))
    rows = {"test": test}
    for name, changes in settings.eval.variants.items():
        algo, dataset = apply_test_changes(test.algo, changes.get("algo", {})), changes.get("dataset", {})
        rows[name] = replace(test, **{**changes, "algo": algo, "dataset": apply_data_changes(test.dataset, dataset)})
    inductive = {
        f"{name}_inductive": replace(row, algo=make_inductive(row.algo))
        for name, row in rows.items()
        if is_transductive(row, has_norm)
    }
    rules = declaration("dataset", settings.dataset["name"]).traits.rules
    others = [name for name, changes in settings.eval.variants.items() if changes.keys() - {"algo"}]
    beside = {
        rule if name == "test" else f"{name}_{rule}": replace(
            rows[name], algo={"name": "rule", "rule": rule, "trials": 1}
        )
        for name in ("test", *others)
        for rule in rules
    }
    return rows | inductive | beside


def is_transductive(row: EvalSettings, has_norm: bool) -> bool:
    """Return whether the prediction for one query depends on the others."""
    by_batch = row.algo.get("norm") == "batch" and has_norm
    sees_queries = declaration("algo", row.algo["name"]).traits.sees_queries
    return by_batch or (sees_queries and row.algo["transductive"])


def make_inductive(algo: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with which queries know nothing of each other."""
    sees_queries = declaration("algo", algo["name"]).traits.sees_queries
    return {**algo, "norm": "per_query"} | ({"transductive": False} if sees_queries else {})


@dataclass(frozen=True)
class Tester:
    """An algorithm with the settings of one row, and the tasks to test it on."""

    algo: Algorithm
    backbone: Backbone  # the one that the algorithm holds
    source: TaskSource
    row: EvalSettings
    split: Split
    dataset: Dataset  # that the tasks are drawn from

    def score(
        self,
        models: Sequence[Model],
        tasks: int,
        execution: Execution,
        ranks: Ranks = ALONE,
        done: Scores = NOTHING,
        keep: Keep = forget,
        twice: bool = False,
        answers: int = 0,
    ) -> Scores:
        """Score a trained model by the same `adapt` as in training; several models as an ensemble.

        done, keep, answers: see `evaluate`. twice: see `read_twice`.
        """
        members = [(self._with_statistics(model.statistics), model.theta) for model in models]
        algo, theta = members[0] if len(members) == 1 else (Ensemble(cast(Any, members), self.source.spec), {})
        with read_twice() if twice else nullcontext():
            return evaluate(
                algo,
                theta,
                self.source,
                tasks=tasks,
                seed=self.row.seed,
                split=self.split,
                tasks_per_chunk=self.row.tasks_per_chunk,
                execution=execution,
                progress=self.split == "test" and ranks.rank == 0 and sys.stderr.isatty(),
                ranks=ranks,
                done=done,
                keep=keep,
                answers=answers,
            )

    @property
    def names(self) -> Sequence[str]:
        """The names of the classes that `draw_classes` numbers; none where they have none."""
        names: Sequence[str] = getattr(self._drawn, "names", ())
        return names

    @property
    def _drawn(self) -> TaskSource:
        return self.source.source if isinstance(self.source, InOrder) else self.source

    def draw_classes(self, tasks: int) -> Tensor | None:
        """Draw the classes of the tasks that `score` scores: [tasks, N]; None where tasks have none in common."""
        source = self._drawn
        if not isinstance(source, ClassSource):
            return None
        generators = (generator_for(self.row.seed, self.split, block) for block in range(math.ceil(tasks / BLOCK)))
        return torch.cat([source.draw_classes(BLOCK, generator) for generator in generators])[:tasks]

    def _with_statistics(self, statistics: Params) -> Algorithm:
        """Return a copy of the algorithm whose norm layers use running averages if the row asks for them."""
        algo, backbone = copy.deepcopy((self.algo, self.backbone))  # the statistics never reach the training
        use_statistics(backbone, statistics if self.row.algo.get("norm") == "running" else {})
        return algo


def draw_fixed_tasks(
    source: TaskSource, count: int, seed: int, split: Split, first: int = 0, stride: int = 1
) -> Iterator[Any]:
    """Draw the first `count` of an endless list of tasks that `seed` and `split` determine, block by block: those from
    block `first` on, or every `stride`-th of them.

    Drawn on the CPU whatever the device, so that the list is the same on every machine. A source that is a list itself
    gives each of its tasks once.
    """
    if (listed := source.spec.listed) is not None:
        tasks = take(source.sample(listed, generator_for(seed, split, 0)), 0, count)
        yield from split_tasks(tasks, BLOCK)[first::stride]
        return
    for block in range(first, math.ceil(count / BLOCK), stride):
        tasks = source.sample(BLOCK, generator_for(seed, split, block))
        yield split_tasks(tasks, min(BLOCK, count - block * BLOCK))[0]


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
    done: Scores = NOTHING,
    keep: Keep = forget,
    answers: int = 0,
) -> Scores:
    """Score `tasks` fixed tasks by the algorithm's own `task_metrics`. The ranks take turns at the blocks, and each
    returns all scores.

    The chunk size changes memory only. done: the scores of the first blocks, if they are known already, the same on
    every rank. keep: gets the scores so far after each round of blocks. answers: of so many first tasks, in whole
    blocks, the logits are kept as well.
    """

    def score(block: Task) -> Scores:
        parts = []
        for chunk in split_tasks(block, tasks_per_chunk):
            parts.append(map_tasks(lambda task: algo.task_metrics(theta, task), chunk, execution))
            bar.update(count_tasks(chunk) * ranks.count)
        return Scores(
            {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}, (hash_tasks(block),)
        )

    first = len(done.prints)
    mine = draw_fixed_tasks(source, tasks, seed, split, first + ranks.rank, ranks.count)
    with tqdm(initial=done.tasks, total=tasks, desc=split, unit="task", disable=not progress, leave=False) as bar:
        for number in range(first, math.ceil(tasks / BLOCK), ranks.count):
            block = next(mine, None)
            with keep_logits((number + ranks.rank) * BLOCK < answers):
                scored = score(block) if block else NOTHING
            for scores in ranks.gather(scored):
                done += scores
            keep(done)
    return done


def hash_tasks(tasks: Task) -> bytes:
    """Hash inputs and labels, class by class, to three decimals: devices may differ in the last bit of a float. Of
    trials, hash the hidden parameters so, and the salts as they are.
    """

    def sort_by_class(part: Examples) -> Examples:
        order = part.y.argsort(dim=1, stable=True)  # none where labels are in order, as samplers give them
        return Examples(part.x[torch.arange(len(order), device=order.device)[:, None], order], part.y.gather(1, order))

    if not isinstance(tasks, Trial) and not tasks.query.y.is_floating_point():
        tasks = Episode(*map(sort_by_class, tasks))

    def to_bytes(value: Tensor) -> bytes:
        return (value * 1000).round().to(torch.int32).cpu().numpy().tobytes()

    if isinstance(tasks, Trial):
        parts = [*map(to_bytes, tasks.latent.values()), tasks.salt.cpu().numpy().tobytes()]
    else:
        parts = [to_bytes(field) for part in tasks for field in part]
    return hashlib.sha256(b"".join(parts)).digest()
