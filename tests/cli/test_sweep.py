"""Sweeps: every job, whatever becomes of the others; a ledger that outlives its launcher; a GPU each."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

from metarun.cli import sweep as sweeps
from metarun.cli.sweep import Ledger, claim_gpu
from metarun.config.errors import Failed
from metarun.runs import run
from tests.conftest import TINY, Command

SWEEP = ("--multirun", "seed=1,2,3", *TINY)


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def seeds_done(place: Path) -> dict[str, float]:
    """Seed -> when it was done."""
    return {file.parent.name[:5]: file.stat().st_mtime for file in place.glob("outputs/*/*/result.json")}


def outcomes(place: Path) -> dict[str, str]:
    """Seed -> the last that the one ledger says."""
    (file,) = place.glob("outputs/sweeps/*.jsonl")
    return {folder.name[:5]: entry["outcome"] for folder, entry in Ledger(file, "").entries().items()}


def test_a_sweep_trains_each(metarun: Command, place: Path) -> None:
    answer = metarun(*TINY, "--multirun", "seed=1,2")
    assert answer.code == 0, answer.err
    folders = sorted((place / "outputs/maml-glyphs-5w1s").iterdir())
    assert [folder.name.split("-")[0] for folder in folders] == ["seed1", "seed2"]
    accuracies = [result(folder)["test"]["test"]["accuracy"]["mean"] for folder in folders]
    assert accuracies[0] != accuracies[1]
    assert answer.out.splitlines()[-1] == "2 jobs: 2 done"


@pytest.mark.parametrize("error", [Failed("it diverged\nat step 3"), RuntimeError("a fault of ours")])
def test_a_run_that_fails_does_not_stop_the_others_and_is_tried_again(
    metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    train_and_test = run._train_and_test

    def fails_once(experiment, *rest):
        if experiment.settings.seed == 2:
            raise error
        return train_and_test(experiment, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(run, "_train_and_test", fails_once)
        answer = metarun(*SWEEP)
    assert answer.code == 1
    assert answer.err.endswith(f"3 jobs: 2 done, 1 failed\nfailed: seed=2: {str(error).splitlines()[0]}\n")
    before = seeds_done(place)
    assert set(before) == {"seed1", "seed3"}

    answer = metarun(*SWEEP)
    assert answer.code == 0, answer.err
    after = seeds_done(place)
    assert set(after) == {"seed1", "seed2", "seed3"}
    assert before.items() < after.items()  # what was done was not done again
    assert set(outcomes(place).values()) == {"done"}


def start(place: Path, *overrides: str) -> subprocess.Popen:
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


def wait_for(condition, process: subprocess.Popen) -> None:
    while not condition():
        assert process.poll() is None, process.stdout and process.stdout.read()
        time.sleep(0.02)


def test_a_killed_launcher_is_gone_on_with(metarun: Command, place: Path) -> None:
    launcher = start(place, "trainer.steps=40")
    wait_for(lambda: "seed1" in seeds_done(place) and "started" in outcomes(place).values(), launcher)
    os.killpg(launcher.pid, signal.SIGKILL)
    launcher.wait()
    if launcher.stdout:
        launcher.stdout.close()
    first = seeds_done(place)["seed1"]
    assert "done" not in (outcomes(place)["seed2"], outcomes(place)["seed3"])
    answer = metarun(*SWEEP, "trainer.steps=40")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "3 jobs: 3 done"
    assert seeds_done(place)["seed1"] == first


def test_two_launchers_share_a_sweep(metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the first is at work on, the second leaves alone and goes on."""
    folders: list[Path] = []
    ordinary = run._train_and_test

    def first_look(experiment, folder, *rest):
        folders.append(folder.path)
        return ordinary(experiment, folder, *rest)

    monkeypatch.setattr(run, "_train_and_test", first_look)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(run, "_train_and_test", lambda *_: (_ for _ in ()).throw(Failed("not yet")))
        assert metarun(*SWEEP).code == 1
    (busy,) = place.glob("outputs/*/seed2-*")
    with FileLock(busy / ".lock", timeout=0):
        answer = metarun(*SWEEP)
    assert answer.code == 0, answer.err
    out = answer.out.splitlines()
    assert out[-2] == "3 jobs: 2 done, 1 elsewhere"
    assert out[-1].startswith(f"elsewhere: seed=2: another process is at work in {busy}")
    assert set(seeds_done(place)) == {"seed1", "seed3"}


def test_settings_edited_between_two_starts_are_told_and_run_anew(metarun: Command, place: Path) -> None:
    own = place / "conf" / "experiment" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nalgo:\n  inner_steps: 2\n")
    sweep = ("--multirun", "seed=1,2", *TINY, "experiment=own", f"--config-dir={place / 'conf'}")
    assert metarun(*sweep).code == 0
    own.write_text("# @package _global_\nalgo:\n  inner_steps: 3\n")
    answer = metarun(*sweep)
    assert answer.code == 0, answer.err
    assert "2 of 2 jobs have other settings than when this sweep was last started: they are run anew" in answer.out
    assert answer.out.splitlines()[-1] == "2 jobs: 2 done"
    assert len(list(place.glob("outputs/*/*/result.json"))) == 4


def test_settings_edited_while_a_sweep_runs_fail_the_rest(
    metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = place / "conf" / "experiment" / "own.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("# @package _global_\nalgo:\n  inner_steps: 2\n")
    ordinary = run._train_and_test

    def edits(*arguments):
        own.write_text("# @package _global_\nalgo:\n  inner_steps: 3\n")
        return ordinary(*arguments)

    monkeypatch.setattr(run, "_train_and_test", edits)
    answer = metarun("--multirun", "seed=1,2", *TINY, "experiment=own", f"--config-dir={place / 'conf'}")
    assert answer.code == 1
    assert "its settings were edited while the sweep ran: start the sweep again" in answer.err
    assert set(seeds_done(place)) == {"seed1"}


@pytest.mark.parametrize("subdir", ["own-${seed}", "${hydra.job.num}"])
def test_a_sweep_may_have_folders_of_the_users_own(metarun: Command, place: Path, subdir: str) -> None:
    answer = metarun(*TINY, "--multirun", "seed=1,2", "hydra.sweep.dir=there", f"hydra.sweep.subdir={subdir}")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines()[-1] == "2 jobs: 2 done"
    assert len(list(place.glob("there/*/result.json"))) == 2
    assert len(list(place.glob("there/sweeps/*.jsonl"))) == 1


def test_a_ledger_line_cut_short_by_a_kill_is_none(tmp_path: Path) -> None:
    ledger = Ledger.of(tmp_path, ["seed=1,2"])
    assert ledger == Ledger(Ledger.of(tmp_path, ["seed=1,2"]).file, ledger.sitting)
    ledger.note("done", tmp_path / "a", ["seed=1"])
    with ledger.file.open("a") as file:
        file.write('{"outcome": "do')
    assert list(ledger.entries()) == [tmp_path / "a"]
    ledger.note("failed", tmp_path / "b", ["seed=2"], error="no")
    assert ledger.entries()[tmp_path / "b"]["error"] == "no"


def test_each_job_has_a_gpu_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sweeps.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    monkeypatch.setattr(sweeps, "_slots", [])
    claim_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    claim_gpu()  # a second job of the same process keeps it
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4"
    mine = list(sweeps._slots)
    monkeypatch.setattr(sweeps, "_slots", [])  # as another process
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    claim_gpu()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "7"
    for lock in (*mine, *sweeps._slots):
        lock.release()


def test_one_gpu_or_none_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    claim_gpu()
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
