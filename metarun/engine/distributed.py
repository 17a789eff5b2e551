"""Several processes that train one model. Each runs the same loop on its share of every step's tasks.

`trainer.workers` starts them on this machine; `torchrun` starts them on any number of machines. They agree through
sums and messages of `torch.distributed`, so that every rank holds the same weights; rank 0 alone writes.
"""

import multiprocessing
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.engine.process import launcher_rank

T = TypeVar("T")
PATIENCE = timedelta(hours=1)  # how long a rank waits for another: rank 0 may be writing to a slow disk
MOST = 8  # workers that `auto` starts: each needs some hundred MiB


@dataclass(frozen=True)
class Ranks:
    """This process, and how many there are."""

    rank: int = 0
    count: int = 1

    def share(self, total: int) -> tuple[int, int]:
        """Return start and stop of this rank's part of `total` things."""
        return total * self.rank // self.count, total * (self.rank + 1) // self.count

    def add(self, tensors: list[Tensor]) -> None:
        """Replace each tensor by its sum over all ranks, in one message; equal bits on every rank."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))

    def gather(self, value: T) -> list[T]:
        """Return every rank's value, by rank."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: T) -> T:
        """Return rank 0's value."""
        if self.count == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def any(self, value: bool) -> bool:
        """Return whether it is true on one rank at least."""
        if self.count == 1:
            return value
        flag = torch.tensor(float(value))
        self.add([flag])
        return bool(flag > 0)


ALONE = Ranks()


class Lost(RuntimeError):
    """Another rank ended before its time."""


def count_workers(workers: int | str, tasks: int, device: torch.device) -> int:
    """Return how many processes to start here. `auto`: on a CPU, one for each of PyTorch's threads, as long as each has
    at least two tasks of a step. Raises ConfigError.
    """
    if launcher_rank() is not None:
        if workers not in ("auto", 1):
            raise ConfigError(f"trainer.workers is {workers}, and the launcher has started processes already: leave it")
        if device.type == "mps":
            raise ConfigError("device is mps: PyTorch has nothing that sums over processes there: no launcher, or cpu")
        return 1
    if workers == "auto":
        return max(1, min(torch.get_num_threads(), tasks // 2, MOST)) if device.type == "cpu" else 1
    if device.type != "cpu" and workers != 1:
        raise ConfigError(f"trainer.workers is {workers}: on device={device} start one process per device by torchrun")
    if int(workers) > tasks:
        raise ConfigError(f"trainer.workers is {workers}: trainer.tasks_per_step is {tasks}, and each needs a task")
    return int(workers)


@contextmanager
def start_ranks(
    count: int, device: torch.device, work: Callable[..., None], arguments: tuple[Any, ...]
) -> Iterator[Ranks]:
    """Make this process one of several: as the launcher says, or the first of `count`, whose others are started here
    and call `work(rank, count, port, threads, *arguments)`. It stays alone if count is 1.
    """
    backend = "gloo" if device.type == "cpu" else f"cpu:gloo,{device.type}:nccl"
    if launcher_rank() is not None:
        dist.init_process_group(backend, timeout=PATIENCE)
        try:
            yield Ranks(dist.get_rank(), dist.get_world_size())
        finally:
            dist.destroy_process_group()
    elif count == 1:
        yield ALONE
    else:
        with _spawn(count, work, arguments) as ranks:
            yield ranks


@contextmanager
def _spawn(count: int, work: Callable[..., None], arguments: tuple[Any, ...]) -> Iterator[Ranks]:
    store = dist.TCPStore("127.0.0.1", 0, count, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
    threads = torch.get_num_threads()
    spawn = multiprocessing.get_context("spawn")
    meeting = (count, store.port, max(1, threads // count))
    workers = [spawn.Process(target=work, args=(rank, *meeting, *arguments), daemon=True) for rank in range(1, count)]
    with without_main():
        for worker in workers:
            worker.start()
    torch.set_num_threads(max(1, threads // count))
    try:
        _await_workers(workers, store)
        with _meet(0, count, store) as ranks:
            yield ranks
    finally:
        torch.set_num_threads(threads)
        for worker in workers:
            worker.join(5)
            worker.terminate()


def _await_workers(workers: Sequence[BaseProcess], store: Any) -> None:
    """Wait until every worker has called. Raises Lost if one ends before: the others would wait for it for an hour."""
    for rank, worker in enumerate(workers, start=1):
        while not store.check([f"rank {rank}"]):
            if not worker.is_alive():
                raise Lost(f"rank {rank} ended at its start, with exit code {worker.exitcode}")
            time.sleep(0.02)


@contextmanager
def without_main() -> Iterator[None]:
    """Let processes that start inside import nothing but what they work for: not the script that called us, which would
    run again where it has no `if __name__ == "__main__"`.
    """
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


@contextmanager
def join_ranks(rank: int, count: int, port: int, threads: int) -> Iterator[Ranks]:
    """Meet rank 0 at `port` of this machine, with `threads` threads: what the `work` of `start_ranks` does first."""
    torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", port, count, is_master=False)  # type: ignore[attr-defined]
    store.set(f"rank {rank}", "here")
    with _meet(rank, count, store) as ranks:
        yield ranks


@contextmanager
def _meet(rank: int, count: int, store: Any) -> Iterator[Ranks]:
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=PATIENCE)
    try:
        yield Ranks(rank, count)
    finally:
        dist.destroy_process_group()


def is_lost(error: Exception) -> bool:
    """Return whether the error is about another rank that left."""
    told = ("closed by peer", "reset by peer", "connection was closed")
    return isinstance(error, Lost) or any(words in str(error).lower() for words in told)
