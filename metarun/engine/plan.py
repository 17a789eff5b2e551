"""How a run computes its meta-gradients: what was asked for, or what proved fastest, within the memory there is."""

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor

from metarun.config.schema import TrainerSettings
from metarun.core.batch import Execution, count_tasks, take
from metarun.core.types import Algorithm, Metrics, Task, Theta
from metarun.engine.capture import WARM_UP, Captured, Recording
from metarun.engine.compile import Compiled
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.gradient import Part, average, sum_chunks, sum_tasks

say = logging.getLogger(__name__)
TIMINGS = 2  # steps that each candidate of `auto` is timed for, after one that warms up
SHARE = 0.03  # of the time of a run's steps, for timing
LARGE = 64 * 64  # pixels from which the pictures of several tasks at once exceed a CPU's cache
SETUP = 0.5  # seconds that a first step may take longer than the others


@dataclass(frozen=True)
class Plan:
    """How tasks are executed. Checkpoints keep it, so that a continued run computes in the same way."""

    execution: Execution
    tasks_per_chunk: int | None  # None: all at once
    channels_last: bool = False  # memory order of the weights of convolutions
    seconds: dict[str, float] | None = None  # of a step, for each candidate that `auto` timed

    @property
    def name(self) -> str:
        size = f" of {self.tasks_per_chunk}" if self.tasks_per_chunk and self.execution == "vmap" else ""
        return f"{self.execution}{size}{', channels_last' if self.channels_last else ''}"

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "seconds" or value is not None}


def list_plans(settings: TrainerSettings, tasks: int, pixels: int, on_cpu: bool) -> list[Plan]:
    """List the plans that the settings leave open, the most promising first.

    tasks: a process's share of a step; pixels: of a picture that the network convolves, 0 where it convolves none.
    """
    chunk, order = settings.tasks_per_chunk, settings.channels_last
    orders = ([True, False] if on_cpu and pixels else [False]) if order == "auto" else [order]
    loops = [Plan("loop", None, one) for one in orders]
    sizes = [chunk, -(-tasks // 4)] if tasks > 4 and settings.execution == "auto" else [chunk]
    vmaps = [Plan("vmap", size, order is True) for size in sizes]
    if settings.precision == "bfloat16" or settings.execution == "loop":
        return loops
    if settings.execution == "vmap":
        return vmaps
    if on_cpu and (tasks == 1 or pixels >= LARGE):
        return [loops[0], *vmaps[1:], *loops[1:], vmaps[0]]
    return [vmaps[0], loops[0], *vmaps[1:], *loops[1:]]


def arrange(theta: Theta, channels_last: bool) -> None:
    """Give the weights of convolutions a memory order; their values stay."""
    order = torch.channels_last if channels_last else torch.contiguous_format
    for params in theta.values():
        for p in params.values():
            if p.dim() == 4:
                p.data = p.data.to(memory_format=order)


class MetaGradient:
    """(theta, tasks) -> mean loss, mean metrics, meta-gradient: computed as the plan and the settings say.

    recording: what of a step becomes a CUDA graph. Where the gradient is one of its own, it is recorded here.
    """

    def __init__(
        self,
        algo: Algorithm,
        settings: TrainerSettings,
        ranks: Ranks = ALONE,
        plan: Plan | None = None,
        recording: Recording = "nothing",
    ) -> None:
        self.algo, self.settings, self.ranks, self.recording = algo, settings, ranks, recording
        self._plan = plan
        if plan is None and settings.execution != "auto" and settings.channels_last != "auto":
            self._plan = Plan(settings.execution, settings.tasks_per_chunk, settings.channels_last)
        self._sums: dict[tuple[Execution, int | None, bool], Part] = {}

    @property
    def plan(self) -> Plan:
        """Raises RuntimeError if none is chosen yet."""
        if self._plan is None:
            raise RuntimeError("no plan is chosen yet")
        return self._plan

    def choose_plan(self, theta: Theta, draw: Callable[[], Task], pixels: int, limit: float = math.inf) -> None:
        """Settle on a plan, unless there is one, and give theta its memory order.

        Times, with the drawn tasks, as many plans as that is worth. Where a run records CUDA graphs, those are timed.
        pixels: see `list_plans`. limit: seconds that the timing may take; if steps are longer, nothing is timed.
        """
        if self._plan is None:
            device = next(p.device for params in theta.values() for p in params.values())
            total, worth = self.settings.tasks_per_step, SHARE * self.settings.steps  # of the time of so many steps
            size = self.settings.tasks_per_chunk or -(-total // self.ranks.count)  # the same on every rank
            plans = list_plans(self.settings, size, pixels, device.type == "cpu")
            self._plan, seconds = plans[0], {}
            if len(plans) > 1 and worth > 2 * (1 + TIMINGS) and not self.settings.compile:  # that takes minutes
                tasks = take(draw(), *self.ranks.share(total))
                if self._fits(plans[0], theta, tasks, limit):
                    seconds = self.compare(plans, theta, tasks, worth, limit)
                    best = self.ranks.broadcast(min(seconds, key=lambda name: seconds[name]))
                    self._plan = replace(next(plan for plan in plans if plan.name == best), seconds=seconds)
            told = ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in seconds.items())
            say.info("execution: %s%s", self._plan.name, f" ({told} per step)" if told else "")
            self._sums.clear()
        arrange(theta, self._plan.channels_last)

    def compare(self, plans: list[Plan], theta: Theta, tasks: Task, worth: float, limit: float) -> dict[str, float]:
        """Return the seconds of a step by the name of each plan that was timed.

        worth: how many steps of the fastest plan all this may last; limit: how many seconds. Raises
        torch.OutOfMemoryError if no plan fits.
        """
        seconds: dict[str, float] = {}
        started = time.perf_counter()
        for plan in plans:
            best = min(seconds.values(), default=math.inf)
            if seconds and time.perf_counter() - started > min(best * (worth - 1 - TIMINGS), limit - 2 * best):
                break
            try:
                arrange(theta, plan.channels_last)
                seconds[plan.name] = self.measure(plan, theta, tasks, best, until=started + limit)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        if not seconds:
            raise torch.OutOfMemoryError("no way to execute a step fits in memory")
        return seconds

    def _fits(self, plan: Plan, theta: Theta, tasks: Task, limit: float) -> bool:
        """Return whether two steps take less than `limit` seconds, by one of their tasks."""
        if math.isinf(limit):
            return True
        one = self.measure(plan, theta, take(tasks, 0, 1), until=time.perf_counter() + limit / 2)
        return 2 * count_tasks(tasks) * one < limit

    def measure(self, plan: Plan, theta: Theta, tasks: Task, best: float = math.inf, until: float = math.inf) -> float:
        """Return the seconds of the fastest of a few steps; nothing is descended.

        best: of another plan. A plan that is far slower is not timed as often. until: the time at which all ends.
        """
        found: list[float] = []
        record = self.recording != "nothing"
        for _ in range((WARM_UP + 1 if record else 1) + TIMINGS):
            started = time.perf_counter()
            loss, _, _ = self._compute(plan, theta, tasks, ALONE, record)
            loss.item()  # waits for the device
            found.append(time.perf_counter() - started)
            slow = found[-1] > 2 * best + (SETUP if len(found) == 1 else 0)
            if not record and (slow or started + 2 * found[-1] > until):
                break
        return min(found[-TIMINGS:])

    def __call__(self, theta: Theta, tasks: Task) -> tuple[Tensor, Metrics, Theta]:
        """See `meta_gradient`. Where memory runs out, the chunk is halved for good."""
        while True:
            try:
                return self._compute(self.plan, theta, tasks, self.ranks, self.recording in ("gradient", "halves"))
            except RuntimeError as error:
                start, stop = self.ranks.share(count_tasks(tasks))
                size = min(self.plan.tasks_per_chunk or stop - start, stop - start)
                if not is_out_of_memory(error) or self.plan.execution == "loop" or size == 1:
                    raise
            self._plan = replace(self.plan, tasks_per_chunk=-(-size // 2))
            say.info("out of memory: going on with trainer.tasks_per_chunk=%d", self.plan.tasks_per_chunk)

    def _compute(
        self, plan: Plan, theta: Theta, tasks: Task, ranks: Ranks, record: bool
    ) -> tuple[Tensor, Metrics, Theta]:
        way = (plan.execution, plan.tasks_per_chunk, record)
        if way not in self._sums:
            self._sums[way] = self._build_sums(plan, record)
        return average(self._sums[way], theta, tasks, ranks)

    def _build_sums(self, plan: Plan, record: bool) -> Part:
        part = sum_tasks(self.algo, plan.execution, bfloat16=self.settings.precision == "bfloat16")
        sums = sum_chunks(Compiled(part) if self.settings.compile else part, plan.execution, plan.tasks_per_chunk)
        return cast(Part, Captured("gradient", sums, lambda outputs: outputs[1])) if record else sums


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
