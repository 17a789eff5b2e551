"""How a run computes its meta-gradients: what was asked for, or what proved fastest, within the memory there is."""

import logging
import time
from typing import Any

import torch
from torch import Tensor

from metarun.config.schema import TrainerSettings
from metarun.core.batch import Execution, between
from metarun.core.types import Algorithm, Episode, Metrics, Theta
from metarun.engine.capture import CapturedPart
from metarun.engine.compile import Compiled
from metarun.engine.distributed import ALONE, Ranks
from metarun.engine.gradient import Part, meta_gradient, sums

say = logging.getLogger(__name__)
TIMINGS = 2  # steps that each candidate of `auto` is timed for, after one that warms up


class Executor:
    """(theta, tasks) -> mean loss, mean metrics, meta-gradient.

    `plan` is JSON that a checkpoint keeps, so that a continued run computes in the same way: `execution`,
    `tasks_per_chunk`, and the seconds of each candidate where `auto` timed them.
    """

    def __init__(self, algo: Algorithm, settings: TrainerSettings, ranks: Ranks = ALONE) -> None:
        self.algo, self.settings, self.ranks = algo, settings, ranks
        self.plan: dict[str, Any] = {"execution": settings.execution, "tasks_per_chunk": settings.tasks_per_chunk}
        self.records = settings.cuda_graph  # parts, on a GPU; not where the whole step is recorded
        self._parts: dict[tuple[Execution, bool], Part] = {}

    @property
    def execution(self) -> Execution:
        execution: Execution = self.plan["execution"]
        return execution

    def settle(self, theta: Theta, tasks: Episode) -> None:
        """Replace `auto` by the fastest way: vmap over all tasks or over a quarter of them, or a loop."""
        if self.plan["execution"] != "auto":
            return
        total = len(tasks.query.y)
        mine = between(tasks, *self.ranks.share(total))
        size = self.settings.tasks_per_chunk or -(-total // self.ranks.count)  # the same on every rank
        candidates: dict[str, tuple[Execution, int | None]] = {
            "vmap": ("vmap", self.settings.tasks_per_chunk),
            f"vmap of {-(-size // 4)}": ("vmap", -(-size // 4)),
            "loop": ("loop", None),
        }
        seconds = {}
        for name, (execution, chunk) in candidates.items():
            try:
                seconds[name] = self._timed(theta, mine, execution, chunk)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
        if not seconds:
            raise torch.OutOfMemoryError("no way to execute a step fits in memory")
        best = self.ranks.agreed(min(seconds, key=lambda name: seconds[name]))
        execution, chunk = candidates[best]
        self._parts.clear()
        self.plan = {"execution": execution, "tasks_per_chunk": chunk, "seconds": seconds}
        say.info("execution: %s (%s)", best, ", ".join(f"{name} {1000 * s:.0f} ms" for name, s in seconds.items()))

    def _timed(self, theta: Theta, tasks: Episode, execution: Execution, chunk: int | None) -> float:
        """Seconds of the fastest of a few steps; nothing is descended."""
        found = []
        for _ in range(1 + TIMINGS):
            started = time.perf_counter()
            loss, _, _ = meta_gradient(
                self.algo,
                theta,
                tasks,
                execution=execution,
                tasks_per_chunk=chunk,
                part=self._part(execution, self.settings.cuda_graph and tasks.query.x.is_cuda),
            )
            loss.item()  # waits for the device
            found.append(time.perf_counter() - started)
        return min(found[1:])

    def __call__(self, theta: Theta, tasks: Episode) -> tuple[Tensor, Metrics, Theta]:
        """See `meta_gradient`. Where memory runs out, the chunk is halved, for good."""
        while True:
            try:
                return meta_gradient(
                    self.algo,
                    theta,
                    tasks,
                    execution=self.execution,
                    tasks_per_chunk=self.plan["tasks_per_chunk"],
                    ranks=self.ranks,
                    part=self._part(self.execution, self.records and tasks.query.x.is_cuda),
                )
            except RuntimeError as error:
                start, stop = self.ranks.share(len(tasks.query.y))
                size = min(self.plan["tasks_per_chunk"] or stop - start, stop - start)
                if not is_out_of_memory(error) or self.execution == "loop" or size == 1:
                    raise
            self.plan["tasks_per_chunk"] = -(-size // 2)
            say.info("out of memory: going on with trainer.tasks_per_chunk=%d", self.plan["tasks_per_chunk"])

    def _part(self, execution: Execution, recorded: bool) -> Part:
        if (execution, recorded) not in self._parts:
            part = sums(self.algo, execution, bfloat16=self.settings.precision == "bfloat16")
            part = Compiled(part) if self.settings.compile else part
            self._parts[execution, recorded] = CapturedPart(part) if recorded else part
        return self._parts[execution, recorded]


def is_out_of_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)
