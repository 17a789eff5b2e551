"""Sweeps: every job, whatever becomes of the others; folders that outlive the launcher; a GPU for each job."""

import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from metarun.cli.hydra_app import Request
from metarun.cli.sweep import claim_gpu, keep_finite, label_jobs, plan
from metarun.config.errors import Failed
from metarun.config.registry import metric
from metarun.config.schema import Settings
from metarun.runs.folder import RunFolder
from tests.conftest import TINY, Command
from tests.support.tiny_runs import omniglot_result

SWEEP = ("--multirun", "seed=1,2,3", *TINY)
BEST = 0.5  # validation score of a run that does not train


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> dict[int, Exception]:
    """Runs that end at once, or with the error that the test puts here for their seed."""
    errors: dict[int, Exception] = {}

    def run(settings: Settings, folder: RunFolder, config: dict[str, Any], choices: dict[str, Any], _: None) -> float:
        with folder.lock(), folder.start(config, choices):
            if settings.seed in errors:
                raise errors[settings.seed]
            result = omniglot_result() | {"config": config, "validation": {"best": BEST, "step": 4, "tasks": 10}}
            (folder.path / "result.json").write_text(json.dumps(result), encoding="utf-8")
        return BEST

    monkeypatch.setattr("metarun.runs.run.run", run)
    return errors


def seeds_done(place: Path) -> dict[str, int]:
    """Seed -> when it was done."""
    return {file.parent.name[:5]: file.stat().st_mtime_ns for file in place.glob("outputs/*/*/result.json")}


def write_experiment(place: Path, inner_steps: int) -> tuple[str, ...]:
    """A file of the user's own. Returns the sweep over it."""
    own = place / "conf" / "experiment" / "own.yaml"
    own.parent.mkdir(parents=True, exist_ok=True)
    own.write_text(f"# @package _global_\nalgo:\n  inner_steps: {inner_steps}\n")
    return ("--multirun", "seed=1,2", *TINY, "experiment=own", f"--config-dir={place / 'conf'}")


# What is said


def test_each_job_is_named_and_timed(metarun: Command, place: Path, untrained: dict[int, Exception]) -> None:
    answer = metarun("--multirun", "ways=3,5", "seed=1,2", *TINY)
    assert answer.code == 0, answer.err
    assert answer.out.splitlines() == [
        *("[1/4] ways=3 seed=1", "[1/4] done in 0 s", "[2/4] ways=3 seed=2", "[2/4] done in 0 s"),
        *("[3/4] ways=5 seed=1", "[3/4] done in 0 s", "[4/4] ways=5 seed=2", "[4/4] done in 0 s"),
        "4 jobs: 4 done",
    ]


def test_what_is_done_is_one_line(metarun: Command, place: Path, untrained: dict[int, Exception]) -> None:
    assert metarun("--multirun", "seed=1,3", *TINY).code == 0
    answer = metarun(*SWEEP)
    assert answer.out.splitlines() == ["2 of 3 done already", "[2/3] seed=2", "[2/3] done in 0 s", "3 jobs: 3 done"]


def test_the_jobs_are_shown(metarun: Command, place: Path, untrained: dict[int, Exception]) -> None:
    show = (*SWEEP, "--cfg", "job")
    lines = metarun(*show).out.splitlines()
    assert [line.partition("-glyphs")[0] for line in lines] == [
        f"[{seed}/3] seed={seed}: unfinished, outputs/maml" for seed in (1, 2, 3)
    ]
    assert list(place.iterdir()) == []
    untrained[2] = Failed("no luck")
    metarun(*SWEEP)
    states = [line.partition(": ")[2].partition(",")[0] for line in metarun(*show).out.splitlines()]
    assert states == ["done", "failed", "done"]


def test_of_a_sweep_only_the_jobs_are_shown(metarun: Command, place: Path) -> None:
    for flags in (("--info", "config"), ("--cfg", "hydra")):
        answer = metarun(*SWEEP, *flags)
        assert answer.code == 2
        assert answer.err == "metarun: of a sweep only the jobs can be shown: --multirun --cfg job\n"


def test_one_job_is_named_by_all_its_overrides() -> None:
    (job,) = label_jobs([(["a=1", "b=2"], Path("there"))])
    assert job.label == "[1/1] a=1 b=2"


# Failures


@pytest.mark.parametrize("error", [Failed("it diverged\nat step 3"), RuntimeError("a fault of ours")])
def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(
    metarun: Command, place: Path, untrained: dict[int, Exception], error: Exception
) -> None:
    untrained[2] = error
    reason = str(error).splitlines()[0]
    answer = metarun(*SWEEP)
    assert answer.code == 1
    assert answer.err.endswith(f"3 jobs: 2 done, 1 failed\nfailed: seed=2: {reason}\n")
    assert "[2/3] failed after 0 s" in answer.out.splitlines()
    before = seeds_done(place)
    assert set(before) == {"seed1", "seed3"}
    (told,) = place.glob("outputs/*/*/error.txt")
    assert (told.parent.name[:5], told.read_text()) == ("seed2", f"{reason}\n")

    untrained.clear()
    answer = metarun(*SWEEP)
    assert answer.code == 0, answer.err
    after = seeds_done(place)
    assert set(after) == {"seed1", "seed2", "seed3"}
    assert before.items() < after.items()  # what was done was not done again
    assert not told.exists()


def test_a_folder_of_another_run_is_left_alone(metarun: Command, place: Path, untrained: dict[int, Exception]) -> None:
    sweep = ("--multirun", "seed=1,2", *TINY, "hydra.sweep.dir=there", "hydra.sweep.subdir=own-${seed}")
    assert metarun(*sweep).code == 0
    answer = metarun(*sweep, "ways=3")
    assert answer.code == 1
    assert answer.err.count("own-1 holds a run with other settings: choose another folder") == 2
    assert metarun(*sweep).out.splitlines() == ["2 jobs: 2 done"]


# Several starts


def test_two_launchers_share_a_sweep(metarun: Command, place: Path, untrained: dict[int, Exception]) -> None:
    """What the first is at work on, the second leaves alone and goes on."""
    jobs, _ = plan(Request(["seed=1,2,3", *TINY], multirun=True))
    busy = jobs[1].folder.path
    busy.mkdir(parents=True)
    with FileLock(busy / ".lock", timeout=0):
        answer = metarun(*SWEEP)
    assert answer.code == 0, answer.err
    out = answer.out.splitlines()
    assert "[2/3] elsewhere" in out
    assert out[-2] == "3 jobs: 2 done, 1 elsewhere"
    assert out[-1].startswith(f"elsewhere: seed=2: another process is at work in {busy}")
    assert set(seeds_done(place)) == {"seed1", "seed3"}


def test_settings_edited_between_two_starts_are_told_and_run_anew(
    metarun: Command, place: Path, untrained: dict[int, Exception]
) -> None:
    assert metarun(*write_experiment(place, inner_steps=2)).code == 0
    answer = metarun(*write_experiment(place, inner_steps=3))
    assert answer.code == 0, answer.err
    assert "2 of 2 jobs have other settings than when they were last started: they are run anew" in answer.out
    assert answer.out.splitlines()[-1] == "2 jobs: 2 done"
    assert len(list(place.glob("outputs/*/*/result.json"))) == 4


class Edit(Callback):
    """Edits the experiment when the first job has ended."""

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        write_experiment(Path.cwd(), inner_steps=3)


def test_settings_edited_while_a_sweep_runs_fail_the_rest(
    metarun: Command, place: Path, untrained: dict[int, Exception]
) -> None:
    sweep = write_experiment(place, inner_steps=2)
    answer = metarun(*sweep, f"+hydra.callbacks.edit._target_={Edit.__module__}.Edit")
    assert answer.code == 1
    assert "failed: seed=2: its settings were edited while the sweep ran: start the sweep again" in answer.err
    assert set(seeds_done(place)) == {"seed1"}


@pytest.mark.parametrize("subdir", ["own-${seed}", "${hydra.job.num}"])
def test_a_sweep_may_have_folders_of_the_users_own(
    metarun: Command, place: Path, untrained: dict[int, Exception], subdir: str
) -> None:
    answer = metarun(*TINY, "--multirun", "seed=1,2", "hydra.sweep.dir=there", f"hydra.sweep.subdir={subdir}")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "2 jobs: 2 done"
    assert len(list(place.glob("there/*/result.json"))) == 2


def test_folders_that_only_hydra_can_name(metarun: Command, place: Path, untrained: dict[int, Exception]) -> None:
    untrained[2] = Failed("no luck")
    answer = metarun(*TINY, "--multirun", "seed=1,2", "hydra.sweep.subdir=${hydra:job.id}")
    assert answer.code == 1
    assert "[2] " in answer.out
    assert answer.err.endswith("2 jobs: 1 done, 1 failed\nfailed: seed=2: no luck\n")


def test_jobs_in_any_order_and_twice(metarun: Command, place: Path, untrained: dict[int, Exception]) -> None:
    answer = metarun("--multirun", "seed=shuffle(1,2,3,4)", *TINY)
    assert answer.out.splitlines()[-1] == "4 jobs: 4 done"
    answer = metarun("--multirun", "seed=7,7", *TINY)
    assert answer.out.splitlines()[-1] == "1 job: 1 done"
    assert len(seeds_done(place)) == 5


# With trainings, in processes that are killed


@pytest.mark.integration
def test_a_sweep_trains_each(metarun: Command, place: Path) -> None:
    answer = metarun(*TINY, "--multirun", "seed=1,2")
    assert answer.code == 0, answer.err
    folders = sorted((place / "outputs/maml-glyphs-5w1s").iterdir())
    assert [folder.name.split("-")[0] for folder in folders] == ["seed1", "seed2"]
    results = [json.loads((folder / "result.json").read_text(encoding="utf-8")) for folder in folders]
    accuracies = [result["test"]["test"]["accuracy"]["mean"] for result in results]
    assert accuracies[0] != accuracies[1]
    assert answer.out.splitlines()[-1] == "2 jobs: 2 done"


@pytest.mark.integration
def test_a_sweep_after_a_fault_in_a_folder(metarun: Command, place: Path) -> None:
    """It is told in one line, recorded, and does not stop the others."""
    jobs, _ = plan(Request(["seed=1,2", *TINY], multirun=True))
    fault = jobs[0].folder.path / "checkpoints"
    fault.parent.mkdir(parents=True)
    fault.write_text("a file, not a folder")
    answer = metarun(*TINY, "--multirun", "seed=1,2")
    assert answer.code == 1
    assert answer.err.startswith(f"metarun: {fault}")
    assert "Traceback" not in answer.err
    assert "2 jobs: 1 done, 1 failed\nfailed: seed=1: " in answer.err
    fault.unlink()
    answer = metarun(*TINY, "--multirun", "seed=1,2")
    assert (answer.code, answer.out.splitlines()[-1]) == (0, "2 jobs: 2 done")


def start(place: Path, *overrides: str) -> "subprocess.Popen[str]":
    program = "import sys; sys.argv[0] = 'metarun'; from metarun.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", program, *SWEEP, *overrides],
        cwd=place,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def wait_for(condition: Callable[[], bool], process: "subprocess.Popen[str]") -> None:
    while not condition():
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)


@pytest.mark.integration
def test_a_killed_launcher_is_gone_on_with(metarun: Command, place: Path) -> None:
    launcher = start(place, "trainer.steps=40")
    wait_for(lambda: "seed1" in seeds_done(place) and any(place.glob("outputs/*/seed2-*/config.yaml")), launcher)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    if launcher.stdout:
        launcher.stdout.close()
    first = seeds_done(place)
    assert set(first) == {"seed1"}
    answer = metarun(*SWEEP, "trainer.steps=40")
    assert answer.code == 0, answer.err
    assert "1 of 3 done already" in answer.out.splitlines()
    assert answer.out.splitlines()[-1] == "3 jobs: 3 done"
    assert seeds_done(place)["seed1"] == first["seed1"]


# GPUs


def test_each_job_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(time, "sleep", lambda seconds: pytest.fail("no GPU is free"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    mine: list[FileLock] = []
    claim_gpu(mine)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    claim_gpu(mine)  # a second job of the same process keeps it
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    another: list[FileLock] = []  # of another process
    claim_gpu(another)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    strangers: list[FileLock] = []  # of another user, who may not open our files
    claim_gpu(strangers)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    for lock in (*mine, *another, *strangers):
        lock.release()


def test_one_gpu_or_none_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    claim_gpu([])
    assert "CUDA_VISIBLE_DEVICES" not in os.environ


@pytest.mark.parametrize(
    ("score", "metric_name", "told"),
    [(0.9, "accuracy", 0.9), (math.nan, "accuracy", 0.0), (math.inf, "mse", 1e9), (None, "mse", 1e9)],
)
def test_a_sweeper_never_sees_what_is_not_finite(score: float | None, metric_name: str, told: float) -> None:
    assert keep_finite(score, metric(metric_name).worst) == told
