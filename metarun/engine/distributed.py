"""Several processes that train one model. Each runs the same loop on its share of every step's tasks.

`trainer.workers` starts them on this machine; `torchrun` starts them on any number of machines. They agree through
sums and messages of `torch.distributed`, so that every rank holds the same weights; rank 0 alone writes.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.engine.process import launched

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # that a rank waits for another: rank 0 may be writing to a slow disk
ENOUGH = 8  # workers that `auto` starts at most: each needs some hundred MiB


@dataclass(frozen=True)
class Ranks:
    """This process, and how many there are."""

    rank: int = 0
    count: int = 1

    def share(self, total: int) -> tuple[int, int]:
        """Start and stop of this rank's part of `total` things."""
        return total * self.rank // self.count, total * (self.rank + 1) // self.count

    def add(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in one message; equal bits on every rank."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))

    def gathered(self, value: T) -> list[T]:
        """Every rank's value, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def agreed(self, value: T) -> T:
        """Rank 0's value."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any(self, value: bool) -> bool:
        """Whether it is true on one rank at least."""
        if self.count == 1:
            return value
        flag = torch.tensor(float(value))
        self.add([flag])
        return bool(flag > 0)


ALONE = Ranks()


def worker_count(workers: int | str, tasks: int, device: torch.device) -> int:
    """How many processes are to be started here. `auto`: on a CPU, one for each of PyTorch's threads, as long as
    each has two tasks of a step at least. Raises ConfigError.
    """
    if launched() is not None:
        if workers not in ("auto", 1):
            raise ConfigError(f"trainer.workers is {workers}, and the launcher has started processes already: leave it")
        return 1
    if workers == "auto":
        return max(1, min(torch.get_num_threads(), tasks // 2, ENOUGH)) if device.type == "cpu" else 1
    if device.type != "cpu" and workers != 1:
        raise ConfigError(f"trainer.workers is {workers}: on device={device} start one process per device by torchrun")
    if int(workers) > tasks:
        raise ConfigError(f"trainer.workers is {workers}: trainer.tasks_per_step is {tasks}, and each needs a task")
    return int(workers)


@contextmanager
def together(
    count: int, device: torch.device, work: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[Ranks]:
    """This process as one of several: as the launcher says, or as the first of `count`, the others of which are
    started here by `work(rank, count, port, threads, *arguments)`. Alone where count is 1.
    """
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    if launched() is not None:
        dist.init_process_group(backend, timeout=PATIENCE)
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    elif count == 1:
        yield ALONE
    else:
        with _started(count, work, arguments) as ranks:
            yield ranks


@contextmanager
def _started(count: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[Ranks]:
    store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)
    threads = torch.get_num_threads()
    spawn = multiprocessing.get_context("spawn")
    meeting = (count, store.port, max(1, threads // count))
    workers = [spawn.Process(target=work, args=(rank, *meeting, *arguments), daemon=True) for rank in range(1, count)]
    for worker in workers:
        worker.start()
    torch.set_num_threads(max(1, threads // count))
    try:
        with joined(0, count, store):
            yield Ranks(0, count)
    finally:
        torch.set_num_threads(threads)
        for worker in workers:
            worker.join(5)
            worker.terminate()


def is_lost(error: Exception) -> bool:
    """Whether it is about another rank that left."""
    return any(words in str(error).lower() for words in ("closed by peer", "reset by peer", "connection was closed"))


@contextmanager
def joined(rank: int, count: int, store: dist.Store) -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        yield Ranks(rank, count)
    finally:
        dist.destroy_process_group()
