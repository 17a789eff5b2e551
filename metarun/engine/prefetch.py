"""The next step's tasks, drawn while this one runs: for pictures that are not in the device's memory."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from metarun.core.types import TaskSource
from metarun.datasets.sampling.episodes import EpisodeSampler, Minibatches
from metarun.datasets.sampling.numbered import Numbered
from metarun.datasets.sampling.order import InOrder


class Prefetch:
    """`tasks_of` on a thread, and on a GPU a stream, of its own. Tasks depend on the step alone, so none changes."""

    def __init__(self, tasks_of: Callable[[int], Any], device: torch.device) -> None:
        self._tasks_of, self._thread = tasks_of, ThreadPoolExecutor(1)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._futures: dict[int, Future[Any]] = {}

    def __call__(self, step: int) -> Any:
        future = self._futures.get(step) or self._thread.submit(self._draw, step)
        self._futures = {step + 1: self._thread.submit(self._draw, step + 1)}
        tasks = future.result()
        if self._stream is not None:
            here = torch.cuda.current_stream(self._stream.device)
            here.wait_stream(self._stream)
            for field in tree_leaves(tasks):
                field.record_stream(here)  # its memory is not used again before this stream is done with it
        return tasks

    def _draw(self, step: int) -> Any:
        with torch.cuda.stream(self._stream):  # None: no effect
            tasks = self._tasks_of(step)
        if self._stream is not None:
            self._stream.synchronize()
        return tasks


def needs_copies(source: TaskSource, device: torch.device) -> bool:
    """Return whether its pictures must be copied to the device for each step."""
    while isinstance(source, InOrder | Numbered):
        source = source.source
    return isinstance(source, EpisodeSampler | Minibatches) and source.table.examples.device.type != device.type
