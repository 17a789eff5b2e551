"""Kill runs at random moments, start each again with the same command, and compare it with one that nothing stopped.

    nice python scripts/kills.py              # 107 kills; writes the table into docs/reliability.md
    python scripts/kills.py --kills 6 --modes vmap --dry

A kill is SIGKILL at a call of a function, which a seed chooses among all calls of a phase: packing, training, ... The
run is a tiny one with all phases, in its own folder with its own cache. It is forked from this process, which has
imported everything, so that a run takes about a second. A run is equal if its weights, states of the optimiser, metrics
and scores are so bit for bit, its result and report are so but for times and memory, no file is missing or left over,
and no process of the killed run lives on.
"""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import CodeType, FrameType
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: a process with threads is not forked
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # its pool of processes would live on

import matplotlib.figure  # noqa: F401
import numpy as np
import torch
from PIL import Image

import metarun.reports.web  # noqa: F401
from metarun.cli import commands
from metarun.cli.main import main
from metarun.datasets.storage import packing
from metarun.engine import checkpoint, loop
from metarun.runs import artifacts, scoring, session
from metarun.runs.folder import RunFolder
from metarun.runs.log import RunLog

PAGE = Path(__file__).parents[1] / "docs" / "reliability.md"
START, END = "<!-- written by scripts/kills.py -->\n", "\n<!-- to here -->"
PHASES: dict[CodeType, str] = {  # function -> the phase that it is; all other time is preparation
    packing.pack.__code__: "packing",
    loop.train.__code__: "training",
    session.Session.validate.__code__: "validation",
    session.Session.save.__code__: "saving",
    scoring.score_rows.__code__: "testing",
    artifacts.draw_curves.__code__: "reporting",
    RunFolder.finish.__code__: "reporting",
    RunLog.close.__code__: "reporting",
    commands.report.__code__: "reporting",
}
NAMES = ("preparation", *dict.fromkeys(PHASES.values()))
MODES = {  # name -> overrides, and its share of the kills
    "vmap": (["trainer.execution=vmap", "trainer.workers=1"], 38),
    "loop": (["trainer.execution=loop", "trainer.workers=1"], 28),
    "chunks": (["trainer.tasks_per_chunk=1", "trainer.workers=1"], 14),
    "two workers": (["trainer.workers=2"], 20),
    "compiled": (["trainer.execution=vmap", "trainer.compile=true", "trainer.workers=1"], 7),
}
TINY = (
    "experiment=null", "dataset=folder", "dataset.image_size=8", "dataset.channels=1", "backbone.filters=1",
    "ways=3", "queries=2", "trainer.steps=6", "trainer.log_every=2", "trainer.eval_every=3", "trainer.keep_best=2",
    "trainer.tasks_per_step=4", "eval.tasks=120", "eval.val_tasks=10", "device=cpu", "hydra.run.dir=outputs/run",
)  # fmt: skip
TIMES = ("seconds", "wall_seconds", "tasks_per_second", "peak_memory_mib")  # differ between any two runs
UNLIKE = ("calls.json", "hydra.yaml")  # hydra.yaml names the working folder
LIVES = 60  # seconds that a worker may take to notice that the run was killed


@dataclass(frozen=True)
class Kill:
    """Where a run was killed, and what became of it."""

    mode: str
    phase: str
    place: str  # the function that was running
    difference: str  # from a run that nothing stopped; empty if there is none


class Counting:
    """A profiler that counts the calls of each phase, and kills the process at one of them."""

    def __init__(self, phase: str, number: int, note: Path) -> None:
        self.calls = Counter[str]()
        self.phases = ["preparation"]
        self.phase, self.number, self.note = phase, number, note

    def __call__(self, frame: FrameType, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code in PHASES:
            self.phases.append(PHASES[frame.f_code])
        elif event == "return" and frame.f_code in PHASES and len(self.phases) > 1:
            self.phases.pop()
        elif event in ("call", "c_call"):
            phase = self.phases[-1]
            self.calls[phase] += 1
            if phase == self.phase and self.calls[phase] == self.number:
                self.note.write_text(f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_qualname}")
                os.kill(os.getpid(), signal.SIGKILL)


def start(
    place: Path,
    overrides: list[str],
    *,
    count: bool = False,
    phase: str = "",
    number: int = 0,
    output: Path = Path("output.txt"),
) -> int:
    """Run and report in a process of its own, in the folder `place`, on the pictures beside it.

    Returns its exit code, negative for a signal.

    count: count the calls, and kill the process at this number of a phase. output: where to write what it prints.
    """
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.setsid()
    os.chdir(place)
    os.environ["METARUN_CACHE"] = str(place / "cache")
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    counting, code = Counting(phase, number, place / "killed.txt"), 1
    try:
        sys.setprofile(counting if count else None)
        code = call(*TINY, *overrides, f"dataset.path={place.parent}/pictures") or call("report", "outputs")
        sys.setprofile(None)
        if count:
            (place / "calls.json").write_text(json.dumps(counting.calls))
    finally:
        sys.stdout.flush()
        os._exit(code)


def call(*words: str) -> int:
    """Do what `metarun WORDS` does. Returns the exit code."""
    sys.argv = ["metarun", *words]
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


def kill_one(root: Path, mode: str, phase: str, moment: float, whole: Path) -> Kill:
    """Kill a run at `moment` (0 to 1) of a phase, start it again, and compare it with `whole`."""
    place, overrides = root / "killed", MODES[mode][0]
    calls = json.loads((whole / "calls.json").read_text())[phase]
    for number in (1 + int(moment * calls), 1 + int(moment * calls / 2)):  # two runs differ by a few calls
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        code = start(place, overrides, count=True, phase=phase, number=number)
        if code == -signal.SIGKILL:
            break
    else:
        return Kill(mode, phase, "nowhere", f"it was not killed (exit code {code})")
    where, lives = (place / "killed.txt").read_text(), wait_for_group(place)
    (place / "killed.txt").unlink()
    if lives:
        return Kill(mode, phase, where, f"its processes {lives} live on")
    code = start(place, overrides)
    if code:
        return Kill(mode, phase, where, f"exit code {code}: {(place / 'output.txt').read_text()[-300:]}")
    return Kill(mode, phase, where, ", ".join(differences(place, whole)))


def wait_for_group(place: Path) -> list[int]:
    """Wait for the processes that work in the folder to end. Returns those that do not."""
    for _ in range(LIVES * 10):
        if not (lives := list(find_processes(place))):
            return []
        time.sleep(0.1)
    return lives


def find_processes(place: Path) -> Iterator[int]:
    """The processes whose working folder this is; a zombie has none."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("cwd").resolve(strict=True) == place.resolve():
                yield int(process.name)
        except OSError:
            continue


def differences(place: Path, whole: Path) -> Iterator[str]:
    """What is not the same in two folders, by the files' own measure."""
    files = {file.relative_to(whole) for file in whole.rglob("*") if file.is_file()}
    ours = {file.relative_to(place) for file in place.rglob("*") if file.is_file()}
    apart = sorted(file for file in files ^ ours if file.name not in UNLIKE)
    yield from (f"{file} is {'left over' if file in ours else 'missing'}" for file in apart)
    for file in sorted(files & ours):
        read = READERS.get(file.suffix)
        if read and file.name not in UNLIKE and not equal(read(place / file), read(whole / file)):
            yield f"{file} differs"


def equal(one: Any, other: Any) -> bool:
    """Bit-equal tensors, and equal everything else."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(key in TIMES or equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else bool(one == other)


READERS: dict[str, Callable[[Path], Any]] = {
    ".pt": checkpoint.load,
    ".json": lambda file: json.loads(file.read_text()),
    ".jsonl": Path.read_bytes,
    ".csv": Path.read_bytes,
    ".yaml": Path.read_bytes,
    ".png": Path.read_bytes,
    ".u8": Path.read_bytes,
    ".i32": Path.read_bytes,
}


def write_pictures(root: Path) -> None:
    """Classes of 8x8 pictures of noise."""
    noise = np.random.default_rng(0)
    for split, classes in (("train", 6), ("val", 4), ("test", 4)):
        for label in range(classes):
            folder = root / split / f"{split}{label}"
            folder.mkdir(parents=True)
            for number in range(6):
                Image.fromarray(noise.integers(0, 256, (8, 8), dtype=np.uint8)).save(folder / f"{number}.png")


def warm_up(root: Path) -> None:
    """Run once in this process, so that all that is imported or read once is there for those that are forked."""
    home, output = os.getcwd(), sys.stdout
    os.environ["METARUN_CACHE"] = str(root / "warm")
    os.chdir(root)
    with open(os.devnull, "w") as sys.stdout:
        code = call(*TINY, *MODES["vmap"][0], f"dataset.path={root}/pictures") or call("report", "outputs")
    sys.stdout = output
    os.chdir(home)
    if code:
        raise SystemExit(f"the run itself ends with exit code {code}")


def kill_all(kills: int, modes: list[str], seed: int) -> Iterator[Kill]:
    """Share the kills among the modes and, in turn, among the phases. Yields each when it is done."""
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        root, chance = Path(folder), Random(seed)
        write_pictures(root / "pictures")
        warm_up(root)
        total, done = sum(MODES[mode][1] for mode in modes), 0
        for number, mode in enumerate(modes, start=1):
            share = round(kills * sum(MODES[name][1] for name in modes[:number]) / total) - done
            (first := root / f"first{number}").mkdir()
            (whole := root / f"whole{number}").mkdir()
            start(first, MODES[mode][0])  # what is compiled is there for the others, which then have as many calls
            if code := start(whole, MODES[mode][0], count=True):
                raise SystemExit(f"{mode}: exit code {code}: {(whole / 'output.txt').read_text()}")
            for kill in range(share):
                yield kill_one(root, mode, NAMES[(done + kill) % len(NAMES)], chance.random(), whole)
            done += share


def make_table(kills: list[Kill]) -> str:
    """Phase by mode: how many of how many kills ended in an equal run."""
    modes = list(dict.fromkeys(kill.mode for kill in kills))
    rows = [["killed in", *modes, "all"], ["---"] * (len(modes) + 2)]
    for name in (*NAMES, "all"):
        row = [name]
        for mode in (*modes, "all"):
            found = [kill for kill in kills if name in (kill.phase, "all") and mode in (kill.mode, "all")]
            row.append(f"{sum(not kill.difference for kill in found)} of {len(found)}" if found else "")
        rows.append(row)
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=107)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry", action="store_true", help="only print the table")
    return parser.parse_args()


if __name__ == "__main__":
    options, found = parse(), []
    for kill in kill_all(options.kills, options.modes, options.seed):
        found.append(kill)
        print(f"{kill.mode}, {kill.phase}, {kill.place}: {kill.difference or 'equal'}", flush=True)
    table = make_table(found)
    print(table)
    if not options.dry:
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
        PAGE.write_text(f"{before}{START}\n{table}\n{END}{rest.partition(END)[2]}", encoding="utf-8")
    sys.exit(any(kill.difference for kill in found))
