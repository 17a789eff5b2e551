"""A run that was killed and continued ends in the same bits as one that never stopped."""

import errno
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.engine import checkpoint
from metarun.engine.state import Progress

TINY = [
    "dataset.classes_train=20",
    "dataset.classes_val=8",
    "dataset.classes_test=8",
    "backbone.filters=4",
    "trainer.steps=120",
    "trainer.tasks_per_step=2",
    "trainer.log_every=7",
    "trainer.eval_every=20",
    "eval.tasks=20",
    "eval.val_tasks=10",
]
Undisturbed = Callable[[str], Path]
METHODS = {
    "maml": ["algo=maml"],
    "protonet": ["algo=protonet", "trainer.execution=loop"],
    "maml, two workers": ["algo=maml", "trainer.workers=2", "trainer.tasks_per_step=4"],
    "maml, chunks": ["algo=maml", "trainer.tasks_per_chunk=1"],
    "maml, compiled": ["algo=maml", "trainer.compile=true", "trainer.workers=1"],
}


def start(folder: Path, *overrides: str, command: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    arguments = command or (*TINY, *overrides, f"hydra.run.dir={folder}")
    code = "from metarun.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        cwd=folder.parent,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    output, _ = process.communicate(timeout=240)
    return process.returncode, output


def wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Until the metrics file has a line of that step or a later one."""
    file = folder / "metrics.jsonl"
    for _ in range(6000):
        if file.exists() and any(f'"step": {s},' in file.read_text() for s in range(step, step + 30)):
            return
        if process.poll() is not None:
            raise AssertionError(process.communicate()[0])
        time.sleep(0.02)
    raise AssertionError(f"no step {step} in time")


def assert_same_run(one: Path, other: Path) -> None:
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert (one / "scores" / "test.csv").read_bytes() == (other / "scores" / "test.csv").read_bytes()
    for name in ("last", "best"):
        tensors, facts = checkpoint.load(one / "checkpoints" / f"{name}.pt")
        expected, expected_facts = checkpoint.load(other / "checkpoints" / f"{name}.pt")
        assert facts["step"] == expected_facts["step"]
        assert_equal(tensors, expected)


def assert_equal(one: Any, other: Any) -> None:
    """Bit-equal tensors, equal everything else, through all dictionaries and lists."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        for a, b in zip(one, other, strict=True):
            assert_equal(a, b)
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    else:
        assert one == other


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """Method -> folder of a run that nothing stopped, made when first asked for."""
    made: dict[str, Path] = {}

    def run(method: str) -> Path:
        if method not in made:
            folder = tmp_path_factory.mktemp(method.replace(", ", "-").replace(" ", "-")) / "whole"
            code, output = finish(start(folder, *METHODS[method]))
            assert code == 0, output
            made[method] = folder
        return made[method]

    return run


@pytest.mark.integration
@pytest.mark.parametrize(
    "method",
    [pytest.param(name, marks=[pytest.mark.slow] if "compiled" in name else []) for name in METHODS],  # takes minutes
)
def test_killed_at_a_random_step_and_started_again(method: str, undisturbed: Undisturbed, tmp_path: Path) -> None:
    expected, folder = undisturbed(method), tmp_path / "killed"
    process = start(folder, *METHODS[method])
    wait_for_step(folder, random.Random().choice([14, 28, 42, 63, 84, 98]), process)
    process.kill()
    process.communicate()
    assert not (folder / "result.json").exists()
    code, output = finish(start(folder, *METHODS[method]))  # the same command again
    assert code == 0, output
    assert_same_run(folder, expected)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["maml, two workers"])
def test_sigterm_saves_between_checkpoints_and_resume_continues(
    method: str, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    expected, folder = undisturbed(method), tmp_path / "stopped"
    process = start(folder, *METHODS[method])
    wait_for_step(folder, 49, process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code == 130, output
    assert f"metarun resume {folder}" in output
    step = checkpoint.load(folder / "checkpoints" / "last.pt")[1]["step"]
    assert step >= 49
    code, output = finish(start(folder, command=("resume", str(folder))))
    assert code == 0, output
    assert f"continuing at step {step}" in output
    assert_same_run(folder, expected)


@pytest.mark.integration
def test_a_diverging_run_says_so_and_keeps_the_last_good_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "diverging"
    code, output = finish(
        start(folder, "optimizer=sgd", "optimizer.momentum=0", "optimizer.lr=1e30", "algo.inner_lr=1e30")
    )
    assert code == 1, output
    assert "training diverged: " in output
    assert "Traceback" not in output
    assert not (folder / "result.json").exists()


@pytest.mark.integration
def test_checkpoints_hold_nothing_but_tensors_and_json(undisturbed: Undisturbed) -> None:
    content = torch.load(undisturbed("maml") / "checkpoints" / "best.pt", weights_only=True)
    assert set(content) == {"tensors", "facts"}
    facts = checkpoint.load(undisturbed("maml") / "checkpoints" / "best.pt")[1]
    assert {"config", "versions", "commit", "dataset", "step", "validation"} <= facts.keys()
    assert Progress(**facts["progress"]).best_step == facts["step"]


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"w": torch.ones(3)}, {"step": 1})

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "the disk is full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        checkpoint.save(path, {"w": torch.zeros(3)}, {"step": 2})
    tensors, facts = checkpoint.load(path)
    assert facts == {"step": 1}
    assert torch.equal(tensors["w"], torch.ones(3))
