"""Tasks drawn one step ahead are those of the step, and are drawn in time."""

import threading

import torch

from metarun.core.seeding import generator_for
from metarun.core.types import Episode, TaskShape
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.table import Table
from metarun.engine.prefetch import Prefetch, needs_copies

CPU = torch.device("cpu")
SAMPLER = EpisodeSampler(
    Table.from_classes(torch.arange(12, dtype=torch.uint8).view(3, 4, 1, 1, 1)), TaskShape(3, 1, 1)
)


def test_tasks_drawn_ahead_are_the_same_and_in_time() -> None:
    asked: list[int] = []
    last_is_drawn = threading.Event()

    def tasks_of(step: int) -> Episode:
        asked.append(step)
        if step == 22:
            last_is_drawn.set()
        return SAMPLER.sample(4, generator_for("ahead", step))

    prefetch = Prefetch(tasks_of, CPU)
    for step in (5, 6, 7, 20, 21):  # a resumed run jumps
        assert torch.equal(prefetch(step).query.x, SAMPLER.sample(4, generator_for("ahead", step)).query.x)
    assert last_is_drawn.wait(timeout=60)
    assert asked == [5, 6, 7, 8, 20, 21, 22]


def test_only_pictures_on_another_device_need_copies() -> None:
    assert not needs_copies(SAMPLER, CPU)
    assert needs_copies(SAMPLER, torch.device("cuda"))
