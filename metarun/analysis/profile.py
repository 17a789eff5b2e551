"""`metarun profile`: where the time of a step goes, with the user's own settings, in half a minute."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from metarun.config.registry import traits_of
from metarun.config.schema import Settings
from metarun.core.batch import map_tasks, take
from metarun.core.machine import device_name, find_device
from metarun.core.seeding import generator_for
from metarun.core.types import Params, Task, TaskSpec
from metarun.engine.build import Experiment
from metarun.engine.evaluate import BLOCK, Model, draw_fixed_tasks
from metarun.engine.loop import descend
from metarun.engine.plan import MetaGradient
from metarun.engine.state import Window
from metarun.runs.log import say, speak

CHOOSING, TIMING = 6.0, 16.0  # seconds for the choice of an execution, and for all parts together
CALLS = 10  # of a part at most


class Part(NamedTuple):
    """How long a part of a run takes, and what that was measured by."""

    seconds: float
    calls: int  # that were averaged
    tasks: int = 1  # of each call
    whole: int = 1  # tasks of the part

    @property
    def origin(self) -> str:
        """How it was timed: "10 times", "once, 2 of 32 tasks"."""
        calls = "once" if self.calls == 1 else f"{self.calls} times"
        return calls if self.tasks == self.whole else f"{calls}, {self.tasks} of {self.whole} tasks"


@dataclass
class Stopwatch:
    """Spreads so many seconds over so many parts; what one leaves over is for the others."""

    seconds: float
    parts: int
    clock: Callable[[], float] = time.perf_counter

    def measure(self, part: Callable[[int], object], whole: int = 1) -> Part:
        """Time a part, which is called with a number of tasks and takes about as long for each: with all of them if
        there is time, otherwise with some, and if one takes too long with that one, once.
        """
        started, share = self.clock(), self.seconds / self.parts
        one = self._time(part, 1)
        if one <= share / 2:
            one = min(one, self._time(part, 1))  # the first call may set things up
        one = max(one, 1e-9)  # a coarse clock may have seen nothing
        tasks = max(1, min(whole, int((share - self.clock() + started) / one)))
        found, expected = list[float](), one * tasks
        while len(found) < CALLS and self.clock() - started + expected <= share:
            found.append(expected := self._time(part, tasks))
        self.seconds, self.parts = self.seconds - self.clock() + started, self.parts - 1
        if not found:
            return Part(one * whole, 1, 1, whole)
        return Part(sum(found) / len(found) * whole / tasks, len(found), tasks, whole)

    def _time(self, part: Callable[[int], object], tasks: int) -> float:
        started = self.clock()
        part(tasks)
        return self.clock() - started


class Drawn(NamedTuple):
    """A source of tasks that are drawn already."""

    spec: TaskSpec
    tasks: Any

    def sample(self, tasks: int, generator: torch.Generator) -> Any:
        return self.tasks


class Step:
    """The parts of a run as functions of a number of tasks, which are always the same."""

    def __init__(self, settings: Settings) -> None:
        self.settings, self.experiment = settings, Experiment.build(settings)
        self.theta = self.experiment.draw_theta()
        self.optimizer, self.window = self.experiment.build_optimizer(self.theta), Window()
        self.meta_gradient = MetaGradient(self.experiment.objective, settings.trainer)
        self.tester = self.experiment.build_tester(self.experiment.plan_rows()["test"], "val")
        self.tasks = self.sample(settings.trainer.tasks_per_step)
        self.statistics: Params = {}

    def read_clock(self) -> float:
        """Return the time at which the device has done its work."""
        if self.experiment.device.type != "cpu":
            torch.accelerator.synchronize(self.experiment.device)
        return time.perf_counter()

    def choose_plan(self) -> None:
        self.meta_gradient.choose_plan(self.theta, lambda: self.tasks, self.experiment.pixels, CHOOSING)

    def sample(self, tasks: int) -> Task:
        generator = generator_for(self.settings.seed, "train", 0, device=self.experiment.device)
        found: Task = self.experiment.source.sample(tasks, generator)
        return found

    def adapt(self, tasks: int) -> None:
        algo, some = self.experiment.objective, take(self.tasks, 0, tasks)
        with torch.no_grad():
            map_tasks(lambda task: algo.task_loss(self.theta, task)[0], some, self.meta_gradient.plan.execution)

    def differentiate(self, tasks: int) -> None:
        if self.settings.trainer.compile:  # anew for another number of tasks
            tasks = self.settings.trainer.tasks_per_step
        self.loss, self.metrics, self.gradient = self.meta_gradient(self.theta, take(self.tasks, 0, tasks))

    def descend(self, _: int) -> None:
        carried = traits_of(self.experiment.algo).carried
        descend(self.theta, self.gradient, self.optimizer, self.settings.trainer, carried)

    def log(self, _: int) -> None:
        self.window.add({"loss": self.loss, **self.metrics})
        self.window.flush(0)

    def collect_statistics(self, tasks: int) -> None:
        fewer = replace(self.settings, eval=replace(self.settings.eval, statistics_tasks=tasks))
        self.statistics = replace(self.experiment, settings=fewer).measure_statistics(self.theta)

    def draw(self, _: int) -> None:
        source = self.tester.source
        block = next(draw_fixed_tasks(source, BLOCK, self.tester.row.seed, "val"))
        self.drawn = replace(self.tester, source=Drawn(source.spec, block))

    def validate(self, tasks: int) -> None:
        self.drawn.score([Model(self.theta, self.statistics)], tasks, self.meta_gradient.plan.execution)


class Profile(NamedTuple):
    """Where the time of a run goes."""

    parts: dict[str, Part]  # of a step; logging and what validation takes are shared out over the steps
    execution: str


@speak()
def measure(settings: Settings) -> Profile:
    """Time the parts of a run in this one process; say what is timed."""
    trainer, test = settings.trainer, settings.eval
    say.info("preparing data and network")
    step = Step(settings)
    say.info("choosing how to execute a step, unless that takes longer than %d s", CHOOSING)
    step.choose_plan()
    scored = min(test.val_tasks, step.tester.source.spec.listed or test.val_tasks)
    calls: dict[str, tuple[Callable[[int], object], int, float]] = {  # name -> what, tasks, steps that share it
        "sampling": (step.sample, trainer.tasks_per_step, 1),
        "its gradient": (step.differentiate, 1 if trainer.compile else trainer.tasks_per_step, 1),
        "loss after adaptation": (step.adapt, trainer.tasks_per_step, 1),
        "optimiser": (step.descend, 1, 1),
        "logging": (step.log, 1, trainer.log_every),
        "validation: statistics": (step.collect_statistics, test.statistics_tasks, trainer.eval_every),
        "validation: tasks": (step.draw, 1, trainer.eval_every / math.ceil(scored / BLOCK)),
        "validation: scores": (step.validate, scored, trainer.eval_every),
    }
    watch, parts = Stopwatch(TIMING, len(calls), step.read_clock), dict[str, Part]()
    for name, (call, tasks, steps) in calls.items():
        say.info("timing %s", name)
        part = watch.measure(call, tasks)
        parts[name] = part._replace(seconds=part.seconds / steps)
    both, loss = parts["its gradient"], parts["loss after adaptation"]  # the gradient computes the loss too
    parts["its gradient"] = both._replace(seconds=max(0.0, both.seconds - loss.seconds))
    return Profile(parts, step.meta_gradient.plan.name)


def describe(settings: Settings) -> list[str]:
    """Return a table of the parts of a training step in this one process."""
    trainer, (parts, execution) = settings.trainer, measure(settings)
    whole = sum(part.seconds for part in parts.values())
    return [
        f"{'part of a step':24}{'ms':>10}{'share':>8}   timed",
        *(
            f"{name:24}{1000 * p.seconds:10.2f}{100 * p.seconds / whole:7.1f} %  {p.origin}"
            for name, p in parts.items()
        ),
        f"{'together':24}{1000 * whole:10.2f}{trainer.tasks_per_step / whole:8.2f} tasks per second",
        f"logging is shared out over {trainer.log_every} steps, validation over {trainer.eval_every}",
        f"execution: {execution}",
        f"all of it in this one process, whatever trainer.workers={trainer.workers} gives",
        device_name(find_device(settings.device)),
    ]
