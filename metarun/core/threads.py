"""Threads of PyTorch: one for small operations, or several that each take a part."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


@contextmanager
def use_one_thread() -> Iterator[int]:
    """For many small operations, which several threads do not make faster, and slower on busy cores.

    Yields how many threads there were.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        torch.set_num_threads(threads)


def share_among_threads(work: Callable[[Any], Tensor], items: Any) -> Tensor:
    """Give each of PyTorch's threads a part of n items. Returns what `work` makes of them in their order, [n, ...].

    No operation is shared, because its last bits would depend on the number of threads. The first item goes ahead, so
    that `work` loads what it needs once.
    """
    with use_one_thread() as threads:
        first, size = work(items[:1]), max(1, -(-(len(items) - 1) // threads))
        parts = [items[start : start + size] for start in range(1, len(items), size)]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return torch.cat([first, *pool.map(work, parts)])
