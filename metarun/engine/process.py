"""What a process knows and does before it imports torch."""

import ctypes
import os
import sys


def launcher_rank() -> int | None:
    """Return this process's rank if torchrun, or another launcher that sets its variables, started several."""
    return int(os.environ["RANK"]) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else None


def prepare_cpu() -> None:
    """Change two habits of the C libraries that cost small training steps dearly, before torch loads.

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
