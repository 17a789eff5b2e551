"""Time metarun's training steps against other libraries and a plain PyTorch loop.

Every implementation has a process of its own, set up as its users have it (metarun sets the allocator, its peers do
not; --allocator tuned sets it for all), and all take turns, in an order that rotates: one step each, the others
asleep. First their float64 meta-gradients must agree with the plain loop's. The ratio is the median over rounds of
plain time / this time.

    python scripts/benchmark.py W1q1 W1q15 --rounds 10
    python scripts/benchmark.py W5                      # episodes per second
    python scripts/benchmark.py --growth docs           # how the cost grows, as plots
"""

import argparse
import contextlib
import importlib.util
import json
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # for contenders, also where this file is loaded by its path

from metarun.workers import prepare_cpu

PLAIN = "plain loop"
TOLERANCE = 1e-9  # of the meta-gradients' relative difference, in float64
OWN: dict[str, dict[str, Any]] = {  # metarun's settings; with two workers where there are two cores
    "metarun": {},
    "metarun, loop": {"execution": "loop"},
    "metarun, channels_last": {"channels_last": True},
    "metarun, 2 workers": {"workers": 2},
    "metarun, loop, 2 workers": {"execution": "loop", "workers": 2},
    "metarun, loop, channels_last, 2 workers": {"execution": "loop", "channels_last": True, "workers": 2},
    "metarun, vmap of 4, 2 workers": {"chunk": 4, "workers": 2},
    "metarun, compiled, loop, channels_last, 2 workers": {
        "execution": "loop",
        "compile": True,
        "channels_last": True,
        "workers": 2,
    },
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("items", nargs="*", help="W1q1 W1q15 W2so W2fo W3omni W3mini W5; none: all but W5")
    parser.add_argument("--rounds", type=int, default=10, help="timed steps of each implementation")
    parser.add_argument("--threads", type=int, help="PyTorch's threads on the CPU, in all processes together")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--allocator", choices=["shipped", "tuned"], default="shipped", help="of metarun's peers")
    parser.add_argument("--only", help="implementations whose name holds one of these words, comma-separated")
    parser.add_argument("--compile", action="store_true", help="also with trainer.compile=true: minutes of compiling")
    parser.add_argument("--growth", type=Path, metavar="FOLDER", help="plot the cost against tasks, steps, ways, side")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    return parser.parse_args()


# one implementation, in its process -----------------------------------------------------------------------------------


def serve(request: dict[str, Any]) -> None:
    """Announce how far the float64 meta-gradient is from the plain loop's, then time a step for every line read."""
    if request["prepare"]:
        prepare_cpu()
    import torch
    from contenders import WORK

    if request["threads"]:
        torch.set_num_threads(request["threads"])
    name, device = request["name"], request["device"]
    work = replace(WORK[request["item"]], **request["changes"])
    difference = disagreement(name, replace(work, tasks=min(work.tasks, 2)), device)
    before = peak_memory(device)
    with implementation(name, work, torch.float32, device) as (step, _):
        step()
        print(json.dumps({"difference": difference}), flush=True)
        for _ in sys.stdin:
            synchronize(device)
            began = time.perf_counter()
            step()
            synchronize(device)
            print(json.dumps({"ms": 1000 * (time.perf_counter() - began)}), flush=True)
        print(json.dumps({"mib": peak_memory(device) - before}), flush=True)


def implementation(name: str, work: Any, dtype: Any, device: str, **changes: Any) -> Any:
    """A context that gives the step and the meta-gradient of metarun, with `OWN[name]` changed, or of a peer."""
    from contenders import PEERS, Metarun, trained_by

    if name in OWN:
        return Metarun(**{**OWN[name], **changes}).ready(work, dtype, device)
    return contextlib.nullcontext(trained_by(PEERS[name], work, dtype, device))


def disagreement(name: str, work: Any, device: str) -> float:
    """The largest relative difference, over the parameters, of the float64 meta-gradient from the plain loop's."""
    import torch
    from contenders import ADAPTS_NORMS, plain, trained_by

    def plain_of_all(net: Any, work: Any) -> Any:
        net.adapted = lambda: dict(net.named_parameters())
        return plain(net, work)

    with implementation(name, work, torch.float64, device, workers=1) as (_, gradient):
        found = gradient()
    _, expected = trained_by(plain_of_all if name in ADAPTS_NORMS else plain, work, torch.float64, device)
    return max(float((found[name] - g).norm() / g.norm()) for name, g in expected().items() if g.norm() > 0)


def peak_memory(device: str) -> float:
    import torch

    if device != "cpu":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def synchronize(device: str) -> None:
    import torch

    if device != "cpu":
        torch.accelerator.synchronize(device)


# all of them, in turns ------------------------------------------------------------------------------------------------


class Server:
    """A process that steps when it is told."""

    def __init__(self, name: str, item: str, args: argparse.Namespace, changes: dict[str, Any]) -> None:
        request = {
            "name": name,
            "item": item,
            "device": args.device,
            "threads": args.threads,
            "prepare": name in OWN or args.allocator == "tuned",
            "changes": changes,
        }
        command = [sys.executable, __file__, "--serve", json.dumps(request)]
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  (it lives as long as the process)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True
        )

    def answer(self) -> dict[str, Any] | None:
        """None where the process has failed: then `why` says the reason."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.startswith("{"):
                return dict(json.loads(line))
        return None

    def why(self) -> str:
        self.errors.seek(0)
        return (self.errors.read().strip().splitlines() or ["it ended"])[-1]

    def step(self) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.answer()
        if answer is None:
            raise RuntimeError(self.why())
        return float(answer["ms"])

    def close(self) -> float:
        """Its peak memory above set-up, in MiB."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        answer = self.answer() or {}
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()
        return float(answer.get("mib", 0.0))


def measure(item: str, names: list[str], args: argparse.Namespace, changes: dict[str, Any] | None = None) -> Any:
    """Implementation -> milliseconds of each round and peak memory; and what is to be said of those left out."""
    servers, remarks, largest = {}, [], 0.0
    for name in names:  # one after another: they set up undisturbed
        server = Server(name, item, args, changes or {})
        answer = server.answer()
        if answer is None:
            remarks.append(f"{name}: left out ({server.why()})")
            server.close()
        elif not answer["difference"] <= TOLERANCE:
            remarks.append(f"{name}: left out, its float64 meta-gradient is off by {answer['difference']:.0e}")
            server.close()
        else:
            servers[name], largest = server, max(largest, answer["difference"])
    times: dict[str, list[float]] = {name: [] for name in servers}
    order = list(servers)
    for start in range(args.rounds):
        for i in range(len(order)):
            name = order[(start + i) % len(order)]
            times[name].append(servers[name].step())
    memory = {name: server.close() for name, server in servers.items()}
    return times, memory, [f"float64 meta-gradients agree with the plain loop's to {largest:.0e}", *remarks]


def table(times: dict[str, list[float]], memory: dict[str, float], tasks: int, gflop: float | None, peak: float) -> Any:
    lines = [
        "| implementation | ms per step | times the plain loop's speed | tasks/s | peak memory, MiB | of peak |",
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
    """GFLOP/s of the best convolution known here: 600 images, 64 -> 64 channels, 14x14, channels last."""
    import torch
    import torch.nn.functional as F

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


def episodes_per_second(args: argparse.Namespace) -> list[str]:
    """W5: 5-way 1-shot episodes with 15 queries from Omniglot's size of table, one thread."""
    import torch
    from torch.utils.data import DataLoader, Dataset

    from metarun.datasets.episodes import EpisodeSampler
    from metarun.types import TaskShape

    torch.set_num_threads(1)
    images = torch.randint(0, 256, (1100, 20, 1, 28, 28), dtype=torch.uint8)
    from metarun.datasets.table import Table

    sampler, generator = EpisodeSampler(Table.even(images), TaskShape(5, 1, 15)), torch.Generator()

    class Episodes(Dataset):  # as one writes it for a DataLoader: an episode is an item
        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.stack([images[c, torch.randperm(20)[:16]] for c in torch.randperm(1100)[:5]]).float() / 255
            return x[:, :1], x[:, 1:]

    loader = iter(DataLoader(Episodes(), batch_size=32))
    found: dict[str, list[float]] = {"metarun": [], "torch DataLoader": []}
    for _ in range(args.rounds):
        for name, draw in (
            ("metarun", lambda: sampler.sample(32, generator)),
            ("torch DataLoader", lambda: next(loader)),
        ):
            began = time.perf_counter()
            for _ in range(5):
                draw()
            found[name].append(5 * 32 / (time.perf_counter() - began))
    lines = ["| sampler | episodes per second, one thread |", "|---|--:|"]
    return lines + [f"| {name} | {statistics.median(rates):.0f} |" for name, rates in found.items()]


GROWTH: dict[str, tuple[str, list[dict[str, Any]]]] = {
    "tasks per step": ("tasks", [{"tasks": n} for n in (1, 4, 16, 64, 256)]),
    "inner steps": ("steps", [{"algo": {"inner_steps": n}} for n in (1, 2, 5, 10, 20)]),
    "ways": ("ways", [{"ways": n, "tasks": 4} for n in (5, 10, 20, 50, 100)]),
    "image side": ("side", [{"image": (1, n, n), "tasks": 4} for n in (28, 56, 84, 112, 224)]),
}


def growth(args: argparse.Namespace) -> list[str]:
    """Milliseconds of a step of W1q1 as one of its numbers grows; plots in the folder `args.growth`."""
    import matplotlib

    matplotlib.use("Agg")
    from contenders import WORK
    from matplotlib import pyplot

    names = [PLAIN, "metarun", "metarun, 2 workers"]
    lines = ["| what grows | size | " + " | ".join(f"{name}, ms" for name in names) + " |", "|---|--:|" + "--:|" * 3]
    figure, axes = pyplot.subplots(1, len(GROWTH), figsize=(14, 3.5), layout="constrained")
    for axis, (title, (_, cases)) in zip(axes, GROWTH.items()):
        sizes: list[int] = []
        medians: dict[str, list[float]] = {name: [] for name in names}
        for changes in cases:
            if "algo" in changes:
                changes = {"algo": {**WORK["W1q1"].algo, **changes["algo"]}, "tasks": 8}
            size = next(v["inner_steps"] if k == "algo" else v[-1] if k == "image" else v for k, v in changes.items())
            times, _, _ = measure("W1q1", names, args, changes)
            if PLAIN not in times:
                continue
            sizes.append(size)
            for name in names:
                medians[name].append(statistics.median(times[name]) if name in times else float("nan"))
            lines.append(f"| {title} | {size} | " + " | ".join(f"{medians[name][-1]:.1f}" for name in names) + " |")
        for name in names:
            axis.plot(sizes, medians[name], marker="o", label=name)
        axis.set(xscale="log", yscale="log", xlabel=title, ylabel="ms per step")
        axis.grid(alpha=0.3)
    axes[0].legend()
    args.growth.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.growth / "growth.png", dpi=120)
    return lines


def main(args: argparse.Namespace) -> int:
    if args.serve:
        serve(json.loads(args.serve))
        return 0
    import torch
    from contenders import PEERS, WORK

    from metarun.environment import device_name

    if args.threads:
        torch.set_num_threads(args.threads)
    hardware = f"{device_name(torch.device(args.device))}, torch {torch.__version__}"
    command = f"    {shlex.join(['python', 'scripts/benchmark.py', *sys.argv[1:]])}"
    if args.growth:
        print(*growth(args), "", hardware, "", command, sep="\n")
        return 0
    if args.items == ["W5"]:
        print(*episodes_per_second(args), "", hardware, "", command, sep="\n")
        return 0
    words = args.only.split(",") if args.only else [""]
    names = [PLAIN, *(peer for peer in PEERS if peer != PLAIN and importlib.util.find_spec(peer)), *OWN]
    names = [name for name in names if name == PLAIN or any(word in name for word in words)]
    names = [name for name in names if args.compile or "compiled" not in name]
    names = [name for name in names if args.device == "cpu" or "workers" not in name]
    peak = convolution_peak(args.device)
    for item in args.items or WORK:
        work = WORK[item]
        alone = [n for n in names if n not in PEERS or n == PLAIN or work.algo["name"] == "maml"]
        alone = [n for n in alone if work.tasks > 1 or "workers" not in n]
        times, memory, remarks = measure(item, alone, args)
        print(f"\n{item}: {work.about}, {work.tasks} task{'s' * (work.tasks > 1)} per step\n")
        print(*table(times, memory, work.tasks, work.gflop, peak), "", *(f"{remark}." for remark in remarks), sep="\n")
    print(f"\n{hardware}; {args.allocator} allocator for the peers; medians of {args.rounds} interleaved rounds;")
    print(f"best convolution {peak:.0f} GFLOP/s.\n\n{command}")
    return 0


if __name__ == "__main__":
    sys.exit(main(options()))
