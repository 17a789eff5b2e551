"""What a process does before it imports torch, and what one of `trainer.workers` does after."""

import ctypes
import os
import signal
import sys
from typing import Any


def launched() -> int | None:
    """This process's rank where torchrun, or another launcher that sets its variables, started several."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def work(rank: int, count: int, port: int, threads: int, values: dict[str, Any], job: str) -> None:
    """Follow rank 0 through `job`, "train" or "test", as one of `count` processes that meet at `port`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group: rank 0 decides, and tells
    prepare_cpu()
    import torch
    import torch.distributed as dist

    from metarun import composing
    from metarun.ranks import is_lost, joined
    from metarun.run import follow

    torch.set_num_threads(threads)
    store = dist.TCPStore("127.0.0.1", port, count, is_master=False)
    try:
        with joined(rank, count, store) as ranks:
            follow(composing.load_settings(values), ranks, job)
    except RuntimeError as error:
        if not is_lost(error):  # where rank 0 has left, it has told why
            raise


def prepare_cpu() -> None:
    """Two habits of the C libraries that cost small training steps dearly; they must change before torch loads.

    glibc returns each large tensor's memory to the kernel and faults it in again (1.3 to 1.75 times slower, and as
    much again with 84x84 pictures where it keeps no more than 2 GiB, the largest threshold that mallopt takes);
    GNU OpenMP's threads spin for milliseconds while they wait, which stalls everything where cores are shared, and
    without any spinning a step of many small operations is 4 times slower: microseconds serve both.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in ((-4, 0), (-1, -1), (-2, 2**28)):  # number of mmaps; trim threshold: never; top pad
            mallopt(option, value)
