"""Try metarun on a new card: is it right, how fast is it, does it learn?

    python scripts/gpu.py check            # each method, eager and as a CUDA graph, against the CPU and against itself
    python scripts/gpu.py speed W1q1 W4    # scripts/benchmark.py on the card; no items: all
    python scripts/gpu.py train            # MAML on Omniglot by the command, 5-way 1-shot; or other overrides

Each piece of work has a process of its own, so that one that crashes costs no other. There is a line for each, PASS or
FAIL with the chain of errors, and the exit code is 1 if one fails. What passed is kept in the folder --out and not done
again on the same card with the same PyTorch and code; a training goes on where it stood. So a slot of ten minutes is
used by `--limit 540`, and the next goes on.

Needs a checkout. `check` and `speed` need torch with what it brings, NumPy and tqdm, and no Hydra; `train` needs what
`pip install -e .` brings, and METARUN_DATA. Options that are not named here go to scripts/benchmark.py.
"""

import argparse
import importlib.util
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ROOT / "scripts"
NEEDS = {"check": ("torch", "numpy", "tqdm"), "speed": ("torch", "numpy", "tqdm"), "train": ("hydra", "torchvision")}
TRAINING = ["experiment=maml/omniglot_5w1s"]
GRACE = 60  # seconds to save a training after its signal
REASONS = 12  # lines that are shown of what failed: the log's, and the chain of errors


@dataclass(frozen=True)
class Piece:
    """A process, which passes if it ends with exit code 0. If it does, the last `lines` that it says are shown."""

    name: str
    command: Sequence[str]
    lines: int = 1


@dataclass(frozen=True)
class Outcome:
    passed: bool
    seconds: float
    said: str


def list_pieces(args: argparse.Namespace, more: list[str]) -> list[Piece]:
    python = [sys.executable]
    if args.stage == "check":
        import torch
        from gpu_checks import list_checks

        names = [name for name in list_checks(torch.device(args.device)) if all(word in name for word in args.items)]
        return [Piece(name, [*python, str(SCRIPTS / "gpu_checks.py"), args.device, name]) for name in names]
    if args.stage == "speed":
        from workload import WORK

        command = [*python, str(SCRIPTS / "benchmark.py")]
        options = ["--device", args.device, *more]
        return [Piece(item, [*command, item, *options], 100) for item in args.items or WORK]
    overrides = args.items or TRAINING
    run = args.out / re.sub(r"\W+", "_", "_".join(overrides))
    setup = [f"device={args.device}", "trainer.cuda_graph=true", f"hydra.run.dir={run}"]
    new = not (run / "checkpoints" / "last.pt").exists()
    words = [*overrides, *setup] if new else ["resume", str(run)]
    return [Piece(" ".join(overrides), [*python, "-m", "metarun", *words], 12)]


def run(piece: Piece, limit: float | None) -> Outcome:
    """Run it to its end, or for `limit` seconds, after which it may save what it has."""
    began = time.monotonic()
    process = subprocess.Popen(piece.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        said, _ = process.communicate(timeout=limit)
        reason = f"ended by {signal.Signals(-process.returncode).name}: " if process.returncode < 0 else ""
    except subprocess.TimeoutExpired:
        reason = f"stopped after {limit:.0f} s: "
        process.terminate()
        try:
            said, _ = process.communicate(timeout=GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            said, _ = process.communicate()
    passed, seconds = process.returncode == 0 and not reason, time.monotonic() - began
    lines = [line.rpartition("\r")[2] for line in said.strip().splitlines()]
    return Outcome(passed, seconds, reason + "\n".join(lines[-(piece.lines if passed else REASONS) :]))


@dataclass(frozen=True)
class Ledger:
    """What passed before, line by line in a file."""

    file: Path
    about: str  # card, PyTorch and code

    def passed(self) -> set[str]:
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []
        return {line["name"] for line in map(json.loads, lines) if line["passed"] and line["about"] == self.about}

    def add(self, name: str, outcome: Outcome) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"about": self.about, "name": name, **vars(outcome)}) + "\n")


def run_all(pieces: Sequence[Piece], ledger: Ledger, jobs: int, limit: float | None) -> bool:
    """Run those that have not passed yet, `jobs` at a time. Returns whether all have passed now."""
    done = ledger.passed()
    left = [piece for piece in pieces if piece.name not in done]
    if len(left) < len(pieces):
        print(f"{len(pieces) - len(left)} passed before")
    failed = 0
    pool = ThreadPoolExecutor(jobs)
    running = {pool.submit(run, piece, limit): piece.name for piece in left}
    try:
        for future in as_completed(running):
            name, outcome = running[future], future.result()
            ledger.add(name, outcome)
            failed += not outcome.passed
            line = "\n" if "\n" in outcome.said else "  "
            print(
                f"{'PASS' if outcome.passed else 'FAIL'}  {name}  {outcome.seconds:.1f} s{line}{outcome.said}",
                flush=True,
            )
    finally:
        pool.shutdown(cancel_futures=True)
    print(f"{len(left) - failed} passed, {failed} failed")
    return not failed


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=NEEDS)
    parser.add_argument("items", nargs="*", help="words in names of checks; items of work; overrides of a training")
    parser.add_argument("--device", default="cuda:0", help="cuda:0; cpu tries the script itself")
    parser.add_argument("--out", type=Path, default=Path("outputs/gpu"), help="what is kept (outputs/gpu)")
    parser.add_argument("--jobs", type=int, default=4, help="checks at the same time")
    parser.add_argument("--limit", type=float, help="seconds for each piece of work")
    args, more = parser.parse_known_intermixed_args()
    if more and args.stage != "speed":
        parser.error(f"unknown: {' '.join(more)}")
    if missing := [name for name in NEEDS[args.stage] if importlib.util.find_spec(name) is None]:
        parser.error(f"{args.stage} needs {', '.join(missing)}, which is not installed")
    args.out = args.out.absolute()
    args.out.mkdir(parents=True, exist_ok=True)
    card = run(Piece("describe", [sys.executable, str(SCRIPTS / "gpu_checks.py"), args.device, "describe"]), args.limit)
    print(card.said)
    if not card.passed:
        return 1
    pieces, ledger = list_pieces(args, more), Ledger(args.out / f"{args.stage}.jsonl", card.said)
    if not pieces:
        parser.error(f"no check has all of the words {', '.join(args.items)}")
    jobs = args.jobs if args.stage == "check" else 1
    return 0 if run_all(pieces, ledger, jobs, args.limit) else 1


if __name__ == "__main__":
    sys.exit(main())
