"""A sweep: every job, whatever becomes of the others, and a GPU for each. The folders of the runs are its memory."""

import math
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from metarun.cli.compose import compose, find_folder
from metarun.cli.grammar import expand
from metarun.cli.hydra_app import Request, call, run_composed, search
from metarun.cli.outlook import announce
from metarun.config.errors import Busy, ConfigError, Failed, Stopped, report_error
from metarun.config.load import identity, load_settings, resolve
from metarun.config.registry import dataset_traits, find_misfit, metric
from metarun.config.schema import Settings
from metarun.config.words import count, format_duration
from metarun.runs.folder import RunFolder

OVERRIDES = ".hydra/overrides.yaml"  # in the folder of each job


@dataclass(frozen=True)
class Job:
    """One run of a sweep."""

    overrides: list[str]
    folder: RunFolder
    label: str  # `[7/18] algo=matchingnet seed=1`: its number, and the overrides that differ between the jobs

    @property
    def outcome(self) -> str:
        """`done`, `elsewhere` while another process is at work on it, `failed`, or `unfinished`."""
        if self.folder.is_busy():
            return "elsewhere"
        if self.folder.error():
            return "failed"
        return "done" if self.folder.result() is not None else "unfinished"

    def explain(self) -> str:
        """Why it is not done."""
        if self.outcome == "elsewhere":
            return f"another process is at work in {self.folder.path}"
        return self.folder.error() or str(self.folder.path)


def sweep(request: Request) -> None:
    """Run all jobs that are not done. Raises ConfigError before the first, Failed after the last if one failed."""
    jobs, root = plan(request)
    if done := sum(job.outcome == "done" for job in jobs):
        print(f"{done} of {len(jobs)} done already")
    if edited := count_edited(jobs):
        print(f"{edited} of {len(jobs)} jobs have other settings than when they were last started: they are run anew")
    before = {} if jobs else find_starts(root)

    def run_next(config: DictConfig) -> float:
        context = HydraConfig.get()
        folder = RunFolder(Path(context.runtime.output_dir).absolute())
        return run_job(find_job(jobs, folder, context.job.num, list(context.overrides.task)), config, folder)

    sys.stdout.flush()  # before processes that share it
    call(request, run_next)
    if not jobs:
        started = sorted(folder for folder, when in find_starts(root).items() if before.get(folder) != when)
        jobs = label_jobs([(read_overrides(folder), folder) for folder in started])
    told = "\n".join(summarise(jobs))
    if any(job.outcome in ("failed", "unfinished") for job in jobs):
        raise Failed(told)
    print(told)


def run_job(job: Job, config: DictConfig, folder: RunFolder) -> float:
    """Run a job in the folder that Hydra made. Returns what a sweeper optimises: the best validation score.

    A job that fails counts as the worst score, so that the others go on.
    """
    worst = metric(dataset_traits(config.dataset).headline).worst
    number, started, score = job.label.partition(" ")[0], time.monotonic(), worst
    try:
        with job.folder.record_failure():
            if folder != job.folder:
                raise ConfigError("its settings were edited while the sweep ran: start the sweep again")
            folder.check_same(resolve(config))
            if (result := folder.result()) is not None:
                from metarun.runs.run import prepare

                prepare(load_settings(resolve(config)), folder)  # it may have read other data
                folder.forget_error()
                return keep_finite(result.validation.best if result.validation else None, worst)
            print(job.label, flush=True)
            if line := announce(resolve(config), HydraConfig.get(), folder.path):
                print(line, flush=True)
            if config.device in ("auto", "cuda"):
                claim_gpu()
            score = run_composed(config)
        outcome = "done in"
    except Stopped as error:
        sys.exit(report_error(error))
    except Busy:
        print(f"{number} elsewhere", flush=True)
        return worst
    except Exception as error:
        report_error(error)
        outcome = "failed after"
    print(f"{number} {outcome} {format_duration(time.monotonic() - started)}", flush=True)
    return keep_finite(score, worst)


def keep_finite(score: float | None, worst: float) -> float:
    """The score, or the worst one instead of none, NaN or infinity."""
    return score if score is not None and math.isfinite(score) else worst


def show_jobs(request: Request) -> Iterator[str]:
    """A line for each job of a sweep: its number, what is special about it, its state and its folder."""
    jobs, _ = plan(request)
    for job in jobs:
        yield f"{job.label}: {job.outcome}, {os.path.relpath(job.folder.path)}"
    if not jobs:
        yield "the sweeper chooses the jobs while it runs"


def summarise(jobs: Sequence[Job]) -> Iterator[str]:
    """How many jobs came to what end, and each that is not done with the reason."""
    outcomes = {job.folder.path: job.outcome for job in jobs}  # two jobs may be one run
    counts = ", ".join(f"{number} {outcome}" for outcome, number in sorted(Counter(outcomes.values()).items()))
    yield f"{count(len(outcomes), 'job')}: {counts}"
    for job in jobs:
        if outcomes[job.folder.path] != "done":
            yield f"{outcomes[job.folder.path]}: {job.label.partition(' ')[2]}: {job.explain()}"


def plan(request: Request) -> tuple[list[Job], Path]:
    """The jobs of a sweep, each of them checked, and the folder of the sweep. Raises ConfigError.

    No jobs if they are not known beforehand: a sweeper chooses the values, or nothing but Hydra names the folders.
    """
    found: list[tuple[list[str], Path | None]] = []
    in_folder: dict[Path, dict[str, Any]] = {}
    with search(request.config_dir) as loader:
        jobs = list(expand(request.overrides, loader))
    for number, overrides in enumerate(jobs):
        config = compose([*overrides, f"hydra.job.num={number}"], request.config_dir, request.config_name)
        values = resolve(config)
        check_fit(load_settings(values))
        root = find_folder(config, "hydra.sweep.dir")
        folder = find_job_folder(config, root)
        RunFolder(folder or root).check_writable()
        if folder and in_folder.setdefault(folder, identity(values)) != identity(values):
            raise ConfigError(f"hydra.sweep.subdir makes {folder} the folder of jobs with different settings")
        found.append((overrides, folder))
    if config.hydra.runtime.choices["hydra/sweeper"] != "basic":
        return [], root
    known = [(overrides, folder) for overrides, folder in found if folder is not None]
    return (label_jobs(known) if len(known) == len(found) else []), root


def check_fit(settings: Settings) -> None:
    """Raise ConfigError if a job's method cannot learn its dataset's kind of tasks, which would end it at its start."""
    if misfit := find_misfit(settings.algo["name"], dataset_traits(settings.dataset).kind):
        raise ConfigError(misfit)


def find_job_folder(config: DictConfig, root: Path) -> Path | None:
    """The folder of a composed job; None if its name needs what Hydra knows only when the job starts."""
    try:
        return root / str(config.hydra.sweep.subdir)
    except OmegaConfBaseException:
        return None


def label_jobs(jobs: Sequence[tuple[list[str], Path]]) -> list[Job]:
    """Number the jobs, and name each by the overrides that not all of them have."""
    common = set.intersection(*(set(overrides) for overrides, _ in jobs)) if len(jobs) > 1 else set()
    labels = (" ".join(text for text in overrides if text not in common) for overrides, _ in jobs)
    return [
        Job(overrides, RunFolder(folder), f"[{number}/{len(jobs)}] {label or folder.name}")
        for number, ((overrides, folder), label) in enumerate(zip(jobs, labels), start=1)
    ]


def find_job(jobs: Sequence[Job], folder: RunFolder, number: int, overrides: list[str]) -> Job:
    """The planned job that Hydra is at; a new one if nothing was planned.

    By its folder, because Hydra shuffles `shuffle(1,2,3)` anew; by its number if a file was edited meanwhile.
    """
    if not jobs:
        return Job(overrides, folder, f"[{number + 1}] {' '.join(overrides)}")
    return next((job for job in jobs if job.folder == folder), jobs[number])


def count_edited(jobs: Sequence[Job]) -> int:
    """The jobs that are new although a folder beside theirs was made by the same overrides: a file was edited since."""
    new = [job for job in jobs if not job.folder.path.exists()]
    places = {job.folder.path.parent for job in new}
    there = {
        (place, tuple(read_overrides(file.parents[1]))) for place in places for file in place.glob(f"*/{OVERRIDES}")
    }
    return sum((job.folder.path.parent, tuple(job.overrides)) in there for job in new)


def read_overrides(folder: Path) -> list[str]:
    """What Hydra was asked for in this folder."""
    return [str(text) for text in OmegaConf.load(folder / OVERRIDES)]


def find_starts(root: Path) -> dict[Path, int]:
    """Folder of a job below `root` -> when it was last started, by the clock of its file system."""
    return {file.parents[1]: file.stat().st_mtime_ns for file in root.rglob(OVERRIDES)}


_held: list[FileLock] = []  # of this process, kept as long as it lives: a GPU cannot be changed once it is in use


def claim_gpu(held: list[FileLock] = _held) -> None:
    """Let this process see one GPU that no other job has; wait until there is one. Does nothing with one GPU or none.

    held: the locks that this process has, to which the new one is added. They are the user's own: many systems let
    nobody open a file of another user in the temporary folder, whatever its mode.
    """
    import torch

    if held or torch.cuda.device_count() < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    while True:
        for name in visible.split(","):
            file = f"metarun-gpu-{os.getuid()}-{name.replace('/', '-')}.lock"
            lock = FileLock(Path(tempfile.gettempdir()) / file, timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            held.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            return
        time.sleep(1)
