"""Fixed tasks, means and intervals."""

from typing import cast

import pytest
import torch

from metarun.config.schema import EvalSettings
from metarun.core.batch import Execution
from metarun.core.types import Dataset, Examples, TaskShape, TaskSource
from metarun.datasets.sampling.episodes import EpisodeSampler, FixedEpisodes
from metarun.datasets.sampling.order import InOrder
from metarun.datasets.sampling.table import Table
from metarun.engine import evaluate as testing
from metarun.engine.evaluate import NOTHING, Keep, Scores, draw_fixed_tasks, evaluate, forget
from tests.support.tiny import algo_and_theta


@pytest.fixture(scope="module")
def source() -> EpisodeSampler:
    images = torch.randint(0, 256, (12, 6, 1, 16, 16), generator=torch.Generator().manual_seed(3), dtype=torch.uint8)
    return EpisodeSampler(Table.from_classes(images), TaskShape(ways=3, shots=2, queries=2))


def scores(
    source: TaskSource,
    tasks: int = 70,
    chunk: int = 10,
    execution: Execution = "vmap",
    seed: int = 0,
    done: Scores = NOTHING,
    keep: Keep = forget,
) -> Scores:
    algo, theta = algo_and_theta("maml", "conv4_strided")
    algo.backbone.float()
    theta = {c: {n: p.detach().float() for n, p in params.items()} for c, params in theta.items()}
    return evaluate(
        algo,
        theta,
        source,
        tasks=tasks,
        seed=seed,
        split="test",
        tasks_per_chunk=chunk,
        execution=execution,
        done=done,
        keep=keep,
    )


def test_scores_depend_on_neither_chunk_size_nor_execution(source: EpisodeSampler) -> None:
    whole = scores(source, chunk=100)
    for other in (scores(source, chunk=1), scores(source, chunk=7), scores(source, execution="loop")):
        assert other.task_hash == whole.task_hash
        assert torch.equal(other.per_task["accuracy"], whole.per_task["accuracy"])
        torch.testing.assert_close(other.per_task["accuracy_by_step"], whole.per_task["accuracy_by_step"])


def test_more_tasks_are_the_same_tasks_and_then_some(source: EpisodeSampler) -> None:
    few, many = scores(source, tasks=30), scores(source, tasks=70)
    assert torch.equal(few.per_task["accuracy"], many.per_task["accuracy"][:30])
    assert few.task_hash != many.task_hash


def test_another_seed_gives_other_tasks(source: EpisodeSampler) -> None:
    assert scores(source, seed=1).task_hash != scores(source).task_hash


def test_vector_metrics_hold_a_score_per_inner_step_and_end_in_the_headline(source: EpisodeSampler) -> None:
    found = scores(source)
    assert found.per_task["accuracy_by_step"].shape == (70, 3)
    assert torch.equal(found.per_task["accuracy_by_step"][:, -1], found.per_task["accuracy"])


def test_a_list_of_few_tasks_is_tested_once_however_many_are_asked_for(source: EpisodeSampler) -> None:
    few = FixedEpisodes(source.sample(60, torch.Generator()), source.shape)
    assert few.spec == source.spec._replace(listed=60)
    found = scores(few, tasks=2000)
    assert found.tasks == 60
    for asked in (3, 55):
        assert scores(few, tasks=asked).tasks == asked
        assert torch.equal(scores(few, tasks=asked).per_task["accuracy"], found.per_task["accuracy"][:asked])
    one, two = ([*draw_fixed_tasks(few, 2000, 0, "test", rank, 2)] for rank in range(2))
    assert torch.equal(torch.cat([block.query.x for block in (*one, *two)]), few.tasks.query.x)


def test_interval_by_hand() -> None:
    """Scores 0, 1, 1, 0: mean 1/2, standard deviation 1/sqrt(3), interval 1.96 / sqrt(3) / 2."""
    summary = Scores({"accuracy": torch.tensor([0.0, 1.0, 1.0, 0.0])}).summarise()
    assert summary["accuracy"] == {"mean": 0.5, "ci95": pytest.approx(1.96 / 3**0.5 / 2)}


@pytest.mark.parametrize("mixed", [None, True])
def test_the_classes_of_test_tasks_are_those_of_the_tasks_that_are_scored(
    source: EpisodeSampler, mixed: bool | None
) -> None:
    """A picture is found in the table, by the sum of its pixels, under the class that its label stands for."""
    algo, _ = algo_and_theta("maml", "conv4_strided")
    tasks: TaskSource = source if mixed is None else InOrder(source, mixed, strings=False)
    row = EvalSettings(70, 1, 5, 3, 2, 2, 10, 1, "best", {}, {})
    classes = testing.Tester(algo, algo.backbone, tasks, row, "test", cast(Dataset, None)).draw_classes(70)
    assert classes is not None
    pictures = source.table.examples.double().flatten(1).sum(1).view(12, 6)  # [classes, drawings]
    drawn = list(draw_fixed_tasks(tasks, 70, 5, "test"))
    for part in (Examples(*(torch.cat(fields) for fields in zip(*parts))) for parts in zip(*drawn)):
        sums = (part.x.double() * 255).round().flatten(2).sum(-1)  # [T, n]
        holds = (pictures[classes.gather(1, part.y)] == sums[..., None]).any(-1)
        assert holds.all()


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_test_that_stopped_goes_on_after_the_blocks_it_kept(source: EpisodeSampler, stop: int) -> None:
    """None of the blocks before `stop` is scored again, and all scores are those of a whole test."""
    kept: list[Scores] = []
    whole = scores(source, tasks=170, keep=kept.append)
    assert [part.tasks for part in kept] == [50, 100, 150, 170]
    again: list[Scores] = []
    found = scores(source, tasks=170, done=kept[stop - 1], keep=again.append)
    assert [part.tasks for part in again] == [part.tasks for part in kept[stop:]]
    assert found.task_hash == whole.task_hash
    assert all(torch.equal(found.per_task[name], values) for name, values in whole.per_task.items())
