"""Time how the cost of a training step of W1q1 grows with tasks, inner steps, ways and image side.

Times like scripts/benchmark.py, prints a table and writes the plots as growth.png into the given folder.

    python scripts/growth.py docs --rounds 10
"""

import argparse
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmark import measure, parse, provenance
from contenders import implementations
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from peers import PLAIN
from workload import WORK, maml

NAMES = [PLAIN, "metarun", "metarun, 2 workers"]
GROWTH: dict[str, tuple[tuple[int, ...], Callable[[int], dict[str, Any]]]] = {
    "tasks per step": ((1, 4, 16, 64, 256), lambda n: {"tasks": n}),
    "inner steps": ((1, 2, 5, 10, 20), lambda n: {"tasks": 8, "algo": maml(0.4, n)}),
    "ways": ((5, 10, 20, 50, 100), lambda n: {"tasks": 4, "ways": n}),
    "image side": ((28, 56, 84, 112, 224), lambda n: {"tasks": 4, "image": (1, n, n)}),
}


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="where growth.png is written")
    return parse(parser)


def medians(changes: dict[str, Any], args: argparse.Namespace) -> list[float]:
    """Median milliseconds of a step by each of NAMES; nan for one that cannot do this work."""
    able = implementations(replace(WORK["W1q1"], **changes), args.device)
    times, _, _ = measure("W1q1", [name for name in NAMES if name in able], args, changes)
    return [statistics.median(times[name]) if name in times else math.nan for name in NAMES]


def main(args: argparse.Namespace) -> int:
    figure = Figure(figsize=(14, 3.5), layout="constrained")
    axes = figure.subplots(1, len(GROWTH))
    print("| what grows | size |", *(f"{name}, ms |" for name in NAMES))
    print("|---|--:|" + "--:|" * len(NAMES))
    for axis, (what, (sizes, changes)) in zip(axes, GROWTH.items()):
        rows = []
        for size in sizes:
            rows.append(medians(changes(size), args))
            cells = ("" if math.isnan(ms) else f"{ms:.1f}" for ms in rows[-1])
            print(f"| {what} | {size} | {' | '.join(cells)} |", flush=True)
        axis.plot(sizes, rows, marker="o", label=NAMES)
        axis.set(xscale="log", yscale="log", xlabel=what, ylabel="ms per step")
        axis.set_xticks(sizes, labels=[str(size) for size in sizes])
        axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.yaxis.set_major_formatter("{x:g}")
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].legend()
    args.folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.folder / "growth.png", dpi=120)
    print("\n![What a step costs as its numbers grow](growth.png)\n")
    print(f"Medians of {args.rounds} interleaved rounds, {args.allocator} allocator for the plain loop;")
    print(provenance(args.device))
    return 0


if __name__ == "__main__":
    sys.exit(main(options()))
