"""How a run computes its meta-gradients: what was asked for, or what proved fastest, within the memory there is."""

import logging
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


@dataclass(frozen=True)
class Plan:
    """How tasks are executed. Checkpoints keep it, so that a continued run computes in the same way."""

    execution: Execution
    tasks_per_chunk: int | None  # None: all at once
    seconds: dict[str, float] | None = None  # of a step, for each candidate that `auto` timed

    def to_json(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name != "seconds" or value is not None}


class MetaGradient:
    """(theta, tasks) -> mean loss, mean metrics, meta-gradient: computed as the plan and the settings say.

    recording: what of a step becomes a CUDA graph. Where that is the gradient, it is recorded here.
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
        if plan is None and settings.execution != "auto":
            self._plan = Plan(settings.execution, settings.tasks_per_chunk)
        self._sums: dict[tuple[Execution, int | None, bool], Part] = {}

    @property
    def plan(self) -> Plan:
        """Raises RuntimeError if `auto` has chosen nothing yet."""
        if self._plan is None:
            raise RuntimeError("trainer.execution=auto: choose a plan first")
        return self._plan

    def choose_plan(self, theta: Theta, draw: Callable[[], Task]) -> None:
        """Replace `auto` by the fastest way for the drawn tasks: vmap over all or over a quarter of them, or a loop.

        Where a run records CUDA graphs, those of the three are compared.
        """
        if self._plan is not None:
            return
        tasks = draw()
        total = count_tasks(tasks)
        mine = take(tasks, *self.ranks.share(total))
        size = self.settings.tasks_per_chunk or -(-total // self.ranks.count)  # the same on every rank
        candidates = {
            "vmap": Plan("vmap", self.settings.tasks_per_chunk),
            f"vmap of {-(-size // 4)}": Plan("vmap", -(-size // 4)),
            "loop": Plan("loop", None),
        }
        if self.recording != "nothing":
            candidates = {f"graph of {name}": plan for name, plan in candidates.items()}
        seconds = {}
        for name, plan in candidates.items():
            try:
                seconds[name] = self.measure(plan, theta, mine)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        if not seconds:
            raise torch.OutOfMemoryError("no way to execute a step fits in memory")
        best = self.ranks.broadcast(min(seconds, key=lambda name: seconds[name]))
        self._sums.clear()
        self._plan = replace(candidates[best], seconds=seconds)
        say.info("execution: %s (%s)", best, ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in seconds.items()))

    def measure(self, plan: Plan, theta: Theta, tasks: Task) -> float:
        """Return the seconds of the fastest of a few steps; nothing is descended."""
        found = []
        record = self.recording != "nothing"
        for _ in range((WARM_UP + 1 if record else 1) + TIMINGS):
            started = time.perf_counter()
            loss, _, _ = self._compute(plan, theta, tasks, ALONE, record)
            loss.item()  # waits for the device
            found.append(time.perf_counter() - started)
        return min(found[-TIMINGS:])

    def __call__(self, theta: Theta, tasks: Task) -> tuple[Tensor, Metrics, Theta]:
        """See `meta_gradient`. Where memory runs out, the chunk is halved for good."""
        while True:
            try:
                return self._compute(self.plan, theta, tasks, self.ranks, self.recording == "gradient")
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
