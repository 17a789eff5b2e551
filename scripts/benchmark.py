"""Time metarun's training steps against other libraries and a plain PyTorch loop.

Every implementation has its own process (scripts/timed.py), set up as its users have it: metarun sets the allocator,
its peers do not, and --allocator tuned sets it for all. They take turns, one step each while the others sleep, in an
order that rotates. Before that, each float64 meta-gradient must agree with the plain loop's. The ratio is the median
over rounds of the plain loop's time / this time. MiB are the peak of its process above what it held before its first
step.

    python scripts/benchmark.py W1q1 W4 --rounds 10

scripts/sampling.py times the drawing of tasks (W5), scripts/growth.py the growth of a step's cost.
"""

import argparse
import json
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from contenders import OWN, disagreement, implementations
from peers import PLAIN
from workload import WORK, synchronize

from metarun.core.machine import device_name

Times = dict[str, list[float]]  # name -> milliseconds of each round
TIMED = Path(__file__).with_name("timed.py")
TOLERANCE = 1e-9  # of the meta-gradients' relative difference, in float64


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("items", nargs="*", help=f"{' '.join(WORK)}; none: all")
    parser.add_argument(
        "--only", default="", help="implementations whose name holds one of these words, comma-separated"
    )
    parser.add_argument("--compile", action="store_true", help="also with trainer.compile=true: minutes of compiling")
    return parse(parser)


def parse(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Parse the command line, with the options that `measure` needs."""
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each implementation")
    parser.add_argument("--threads", type=int, help="PyTorch's threads on the CPU, in all processes together")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--allocator", choices=["shipped", "tuned"], default="shipped", help="of metarun's peers")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    return args


class Server:
    """A process that takes a training step on request."""

    def __init__(self, name: str, item: str, args: argparse.Namespace, changes: dict[str, Any]) -> None:
        request = {
            "name": name,
            "item": item,
            "device": args.device,
            "threads": args.threads,
            "prepare": name in OWN or args.allocator == "tuned",
            "changes": changes,
        }
        command = [sys.executable, str(TIMED), json.dumps(request)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it lives as long as the process)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def answer(self) -> dict[str, Any] | None:
        """Read the next answer; None if the process has failed, for the reason that `why` returns."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        return None

    def why(self) -> str:
        """The last line of the process's errors."""
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or ["it ended"])[-1]

    def step(self) -> float:
        """Take a step; returns milliseconds. Raises RuntimeError if the process has failed."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.answer()
        if answer is None:
            raise RuntimeError(self.why())
        return float(answer["ms"])

    def close(self) -> float:
        """End the process; returns its peak of memory above set-up, in MiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        answer = self.answer() or {}
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        return float(answer.get("mib", 0.0))


def measure(
    item: str, names: list[str], args: argparse.Namespace, changes: dict[str, Any] | None = None
) -> tuple[Times, dict[str, float], list[str]]:
    """Time the implementations on an item of work, with `changes` to it.

    Returns by name the milliseconds of each round, by name the peak of memory, and remarks, also about those left out.
    """
    servers, remarks, largest = {}, [], 0.0
    work = replace(WORK[item], **changes or {})
    for name in names:  # one after another, so that they set up undisturbed
        try:
            difference = disagreement(name, replace(work, tasks=min(work.tasks, 2)), args.device)
        except Exception as error:  # of any kind: it is another library's
            remarks.append(f"{name}: left out ({error!r})")
            continue
        if not difference <= TOLERANCE:
            remarks.append(f"{name}: left out, its float64 meta-gradient is off by {difference:.0e}")
            continue
        server = Server(name, item, args, changes or {})
        if server.answer() is None:
            remarks.append(f"{name}: left out ({server.why()})")
            server.close()
        else:
            servers[name], largest = server, max(largest, difference)
    times: Times = {name: [] for name in servers}
    order = list(servers)
    for start in range(args.rounds):
        for i in range(len(order)):
            name = order[(start + i) % len(order)]
            times[name].append(servers[name].step())
    memory = {name: server.close() for name, server in servers.items()}
    return times, memory, [f"float64 meta-gradients agree with the plain loop's to {largest:.0e}", *remarks]


def table(times: Times, memory: dict[str, float], tasks: int, gflop: float | None, peak: float) -> list[str]:
    """The lines of a Markdown table. `peak`: GFLOP/s of the best convolution."""
    lines = [
        "| implementation | ms per step | times the plain loop's speed | tasks/s | MiB per process | of peak |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name, row in times.items():
        middle = statistics.median(row)
        ratio = statistics.median(slow / this for slow, this in zip(times[PLAIN], row))
        share = f"{100 * gflop / (middle / 1000) / peak:.0f} %" if gflop else ""
        lines.append(
            f"| {name} | {middle:.1f} | {ratio:.2f} | {1000 * tasks / middle:.0f} | {memory[name]:.0f} | {share} |"
        )
    return lines


def convolution_peak(device: str) -> float:
    """Measure the GFLOP/s of a convolution that runs well: 600 images, 64 -> 64 channels, 14x14, channels last."""
    x, w = torch.rand(600, 64, 14, 14, device=device), torch.rand(64, 64, 3, 3, device=device)
    x, w = x.to(memory_format=torch.channels_last), w.to(memory_format=torch.channels_last)
    best = float("inf")
    for _ in range(20):
        synchronize(device)
        began = time.perf_counter()
        F.conv2d(x, w, padding=1)
        synchronize(device)
        best = min(best, time.perf_counter() - began)
    return 2 * 600 * 14 * 14 * 64 * 64 * 9 / best / 1e9


def provenance(device: str) -> str:
    """The hardware and the command, as Markdown for below a table."""
    command = shlex.join(["python", f"scripts/{Path(sys.argv[0]).name}", *sys.argv[1:]])
    return f"{device_name(torch.device(device))}, torch {torch.__version__}:\n\n    {command}"


def main(args: argparse.Namespace) -> int:
    peak = convolution_peak(args.device)
    for item in args.items or WORK:
        work = WORK[item]
        names = [name for name in implementations(work, args.device) if args.compile or "compiled" not in name]
        names = [name for name in names if name == PLAIN or any(word in name for word in args.only.split(","))]
        times, memory, remarks = measure(item, names, args)
        print(f"### {item}: {work.about}, {work.tasks} task{'s' * (work.tasks > 1)} per step\n")
        print(*table(times, memory, work.tasks, work.gflop, peak), "", *(f"{remark}." for remark in remarks), sep="\n")
        print(flush=True)
    print(f"Medians of {args.rounds} interleaved rounds, {args.allocator} allocator for the peers, best convolution")
    print(f"{peak:.0f} GFLOP/s; {provenance(args.device)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(options()))
