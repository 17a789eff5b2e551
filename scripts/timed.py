"""Run one implementation in its own process, for scripts/benchmark.py: take and time a step for every line read."""

import contextlib
import json
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from metarun.engine.process import prepare_cpu


def main(request: dict[str, Any]) -> None:
    if request["prepare"]:
        prepare_cpu()  # before torch loads
    import torch
    from contenders import implementation
    from workload import WORK, synchronize

    from metarun.engine.capture import WARM_UP

    if request["threads"]:
        torch.set_num_threads(request["threads"])
    device = request["device"]
    work = replace(WORK[request["item"]], **request["changes"])
    with implementation(request["name"], work, torch.float32, device) as (step, _):
        forget_peak(device)
        before = peak_mib(device)
        for _ in range(1 if device == "cpu" else WARM_UP + 1):  # a CUDA graph is recorded in the last
            step()
        print(json.dumps({"ready": True}), flush=True)
        for _ in sys.stdin:
            synchronize(device)
            began = time.perf_counter()
            step()
            synchronize(device)
            print(json.dumps({"ms": 1000 * (time.perf_counter() - began)}), flush=True)
        print(json.dumps({"mib": peak_mib(device) - before}), flush=True)


def forget_peak(device: str) -> None:
    """Start anew with measuring the peak of memory."""
    import torch

    if device != "cpu":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_mib(device: str) -> float:
    """The peak of memory since `forget_peak`, in MiB; nan on a CPU without Linux's /proc.

    `ru_maxrss` would start from the peak of the parent process.
    """
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0]) / 1024
    except OSError:
        return math.nan


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
