"""A sweep's ledger, which outlives its launcher, and a GPU for each of its jobs."""

import hashlib
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from metarun.cli.compose import compose
from metarun.cli.grammar import is_open_ended
from metarun.cli.grammar import jobs as typed_jobs
from metarun.cli.hydra_app import _run, _through_hydra
from metarun.config.errors import Busy, ConfigError, Failed, Stopped, reported
from metarun.config.load import load_settings, plain
from metarun.config.registry import declaration, metric
from metarun.runs.folder import RunFolder


@dataclass(frozen=True)
class Ledger:
    """A file with a line of JSON for whatever happened to a job: planned, started, done, failed or, where another
    launcher was at work on it, elsewhere. The last line of a job counts; its key is its folder, named after all its
    settings. Any number of processes add to it.
    """

    file: Path
    sitting: str

    @classmethod
    def of(cls, folder: Path, overrides: list[str]) -> "Ledger":
        """The one of this sweep, in whatever order it was typed."""
        digest = hashlib.sha256(json.dumps(sorted(overrides)).encode()).hexdigest()[:8]
        return cls((folder / "sweeps" / f"{digest}.jsonl").absolute(), uuid4().hex[:8])

    def note(self, outcome: str, folder: Path, overrides: list[str], **facts: Any) -> None:
        line = {"outcome": outcome, "folder": str(folder), "overrides": overrides, "sitting": self.sitting, **facts}
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="utf-8") as file:  # one write, so that lines do not mix
            file.write(f"\n{json.dumps(line)}\n")  # the line before may have been cut short by a kill

    def entries(self) -> dict[Path, dict[str, Any]]:
        """Folder -> its last line; half a line is none."""
        found = {}
        for line in self.file.read_text(encoding="utf-8").splitlines() if self.file.is_file() else []:
            try:
                entry = dict(json.loads(line))
            except ValueError:
                continue
            found[Path(entry["folder"])] = entry
        return found

    def plan(self, jobs: Mapping[Path, list[str]]) -> None:
        """Note the jobs that are new, and say where an earlier start of this sweep meant other settings by them."""
        before = self.entries()
        old = [entry["overrides"] for folder, entry in before.items() if folder not in jobs]
        if changed := [overrides for overrides in jobs.values() if overrides in old]:
            there = f"{len(changed)} of {len(jobs)} jobs"
            print(f"{there} have other settings than when this sweep was last started: they are run anew")
        for folder, overrides in jobs.items():
            if folder not in before:
                self.note("planned", folder, overrides)

    def told(self, jobs: Mapping[Path, list[str]]) -> Iterator[str]:
        """For a person: how many jobs came to what end, and each that is not done with the reason."""
        entries = {f: e for f, e in self.entries().items() if f in jobs or (not jobs and e["sitting"] == self.sitting)}
        counts: dict[str, int] = {}
        for entry in entries.values():
            counts[entry["outcome"]] = counts.get(entry["outcome"], 0) + 1
        yield f"{len(entries)} jobs: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
        common = set.intersection(*(set(entry["overrides"]) for entry in entries.values())) if entries else set()
        for folder, entry in entries.items():
            if entry["outcome"] != "done":
                own = " ".join(text for text in entry["overrides"] if text not in common)
                yield f"{entry['outcome']}: {own or folder.name}: {entry.get('error', folder)}"

    def failures(self) -> int:
        """Of this sitting."""
        return sum(e["outcome"] == "failed" and e["sitting"] == self.sitting for e in self.entries().values())


_slots: list[FileLock] = []  # of this process, kept as long as it lives: a GPU cannot be changed once it is in use


def claim_gpu() -> None:
    """Of several GPUs, let this process see one that no other job has; wait until there is one."""
    import torch

    if _slots or torch.cuda.device_count() < 2:
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(torch.cuda.device_count())))
    while True:
        for name in visible.split(","):
            lock = FileLock(Path(tempfile.gettempdir()) / f"metarun-gpu-{name.replace('/', '-')}.lock", timeout=0)
            try:
                lock.acquire()
            except Timeout:
                continue
            _slots.append(lock)
            os.environ["CUDA_VISIBLE_DEVICES"] = name
            return
        time.sleep(1)


def sweep(overrides: list[str], config_dir: str | None, name: str) -> None:
    """All runs, also after one that failed; those that are done already are passed over. Raises Failed at the end if
    there was a failure.
    """
    jobs, root = sweep_jobs(overrides, config_dir, name)
    ledger = Ledger.of(root, [name, *overrides])
    ledger.plan(jobs)

    def job(config: DictConfig) -> float:
        context = HydraConfig.get()
        folder = Path(context.runtime.output_dir).absolute()
        typed = jobs.get(folder, list(context.overrides.task))
        worst = metric(declaration("dataset", config.dataset.name).traits.headline).worst
        try:
            if jobs and folder not in jobs:
                raise ConfigError("its settings were edited while the sweep ran: start the sweep again")
            if config.device in ("auto", "cuda"):
                claim_gpu()
            ledger.note("started", folder, typed)
            score = _run(config)
        except Stopped as error:
            sys.exit(reported(error))
        except Exception as error:
            reported(error)
            first = str(error).partition("\n")[0] or type(error).__name__
            ledger.note("elsewhere" if isinstance(error, Busy) else "failed", folder, typed, error=first)
            return worst
        ledger.note("done", folder, typed, score=score)
        return score if math.isfinite(score) else worst

    _through_hydra(job)
    told = "\n".join([f"sweep {ledger.file}", *ledger.told(jobs)])
    if ledger.failures():
        raise Failed(told)
    print(told)


def sweep_jobs(
    overrides: list[str], config_dir: str | None = None, name: str = "config"
) -> tuple[dict[Path, list[str]], Path]:
    """The folder of each run of a sweep and its overrides, all checked; and the folder of the sweep.

    No runs where their folders are not known beforehand: where a sweeper chooses the values, or a folder is named by
    the job's number. Raises ConfigError.
    """
    jobs: dict[Path | None, list[str]] = {}
    for job in typed_jobs(overrides, config_dir):
        config = compose(job, config_dir, name)
        load_settings(plain(config))
        root, folder = sweep_folders(config)
        RunFolder(folder or root).check_writable()
        jobs[folder] = job
    unknown = None in jobs or is_open_ended(overrides)
    return {} if unknown else {folder: job for folder, job in jobs.items() if folder}, root


def sweep_folders(config: DictConfig) -> tuple[Path, Path | None]:
    """The folder of a sweep, and below it that of this job; None where it depends on the job's number."""
    root = Path(config.hydra.sweep.dir).absolute()
    try:
        return root, root / config.hydra.sweep.subdir
    except OmegaConfBaseException:
        return root, None
