"""A sweep's ledger, which outlives its launcher, and a GPU for each of its jobs."""

import hashlib
import json
import math
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from filelock import FileLock, Timeout

WORST = {"classification": 0.0, "regression": 1e9}  # what a sweeper is told of a run without a finite score


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


def finite_or_worst(value: float, kind: str) -> float:
    return value if math.isfinite(value) else WORST[kind]


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
