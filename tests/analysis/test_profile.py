"""Where the time of a step goes, what is told while it is measured, and how long that may take."""

import time
from collections.abc import Callable

import pytest
from torch import Tensor

from metarun.algos.protonet import ProtoNet
from metarun.analysis.profile import Part, Stopwatch
from metarun.core.types import Episode, Metrics, Theta
from tests.conftest import TINY, Command


class Clock:
    """A clock that only slow work moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def take(self, seconds: float, setup: float = 0.0) -> Callable[[int], None]:
        """Return work of `seconds` for each task, whose first call takes `setup` longer."""
        waits = [setup]

        def work(tasks: int) -> None:
            self.now += tasks * seconds + (waits.pop() if waits else 0)

        return work


@pytest.mark.parametrize(
    ("seconds", "setup", "calls", "tasks", "spent"),
    [
        (0.01, 0.0, 10, 8, 0.82),  # two calls of a task, ten of all
        (0.01, 0.9, 10, 8, 1.72),
        (0.1, 0.0, 2, 8, 1.8),
        (0.5, 0.0, 1, 2, 2.0),
        (0.9, 0.0, 1, 1, 1.8),
        (40.0, 0.0, 1, 1, 40.0),  # a single task is not cut
    ],
)
def test_a_part_of_eight_tasks_is_timed_as_far_as_its_two_seconds_go(
    seconds: float, setup: float, calls: int, tasks: int, spent: float
) -> None:
    clock = Clock()
    found = Stopwatch(6.0, parts=3, clock=clock.read).measure(clock.take(seconds, setup), whole=8)
    assert found == Part(found.seconds, calls, tasks, 8)
    assert found.seconds == pytest.approx(8 * seconds)
    assert clock.now == pytest.approx(spent)


def test_what_a_part_leaves_over_is_for_the_others_and_what_it_takes_is_theirs() -> None:
    clock = Clock()
    watch = Stopwatch(6.0, parts=3, clock=clock.read)
    assert watch.measure(clock.take(0.0625)).calls == 10  # 0.75 of 2 s, which leaves 5.25 s
    assert watch.measure(clock.take(0.5)).calls == 3  # 2.5 of 2.625 s, which leaves 2.75 s
    assert watch.measure(clock.take(0.625), whole=100).tasks == 2  # 1.25 and 1.25 s


@pytest.mark.integration
def test_slow_steps_are_cut_to_fewer_tasks_and_the_table_says_so(
    metarun: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of a task takes 3 s; everything else, and each look at the clock, a microsecond."""
    clock, loss = Clock(), ProtoNet.task_loss
    look, lose = clock.take(1e-6), clock.take(3.0)

    def read() -> float:
        look(1)
        return clock.now

    def lose_slowly(self: ProtoNet, theta: Theta, episode: Episode) -> tuple[Tensor, Metrics]:
        lose(1)
        return loss(self, theta, episode)

    monkeypatch.setattr(ProtoNet, "task_loss", lose_slowly)
    monkeypatch.setattr(time, "perf_counter", read)
    long = ("trainer.execution=loop", "trainer.tasks_per_step=10", "trainer.steps=2000")
    answer = metarun("profile", *TINY, "algo=protonet", *long)
    assert answer.code == 0, answer.err
    assert clock.now < 30
    rows = {line[:24].strip(): line[24:] for line in answer.out.splitlines()}
    assert rows["loss after adaptation"].split("%")[1].strip() == "once, 1 of 10 tasks"
    assert float(rows["loss after adaptation"].split()[0]) == pytest.approx(30_000, rel=1e-3)
    assert rows["validation: statistics"].split("%")[1].strip() == "once, 1 of 20 tasks"
    assert float(rows["validation: statistics"].split()[0]) == pytest.approx(60_000 / 2, rel=1e-3)  # every 2 steps


@pytest.mark.integration
def test_the_parts_of_a_step_are_told_and_add_up(metarun: Command) -> None:
    answer = metarun("profile", *TINY, "algo=protonet", "trainer.steps=400")  # of which `auto` may time 12
    assert answer.code == 0, answer.err
    said, table = answer.out.partition("part of a step")[::2]
    assert "choosing how to execute a step" in said
    assert "timing validation: scores" in said
    parts = {line[:24].strip(): float(line[24:34]) for line in table.splitlines()[1:10]}
    whole = parts.pop("together")
    assert sum(parts.values()) == pytest.approx(whole, abs=0.05)  # each is rounded to 0.01 ms
