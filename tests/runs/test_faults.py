"""Faults of the machine: one line and an exit code, nothing lost, and the next start goes on."""

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from tests.conftest import TINY, Command

ROOT = Path(__file__).parents[2]
ALONE = ["unshare", "--user", "--map-root-user", "--mount"]  # with mounts of its own, which needs no privilege
MAY_MOUNT = subprocess.run([*ALONE, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode == 0
WORKERS = [*TINY, "trainer.workers=2", "trainer.tasks_per_step=4", "hydra.run.dir=run"]
MAIN = "from metarun.cli.main import main; main()"


def execute(*command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)


@pytest.mark.integration
def test_runs_that_are_killed_in_each_phase_end_as_others_do() -> None:
    """Seven of the hundred kills of scripts/kills.py, whose table is in docs/reliability.md."""
    done = execute(sys.executable, f"{ROOT}/scripts/kills.py", "--kills=7", "--modes", "vmap", "--dry")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(": equal\n") == 7


@pytest.mark.slow
def test_a_hundred_kills_in_every_mode() -> None:
    done = subprocess.run([sys.executable, f"{ROOT}/scripts/kills.py", "--dry"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.integration
@pytest.mark.skipif(not MAY_MOUNT, reason="this system lets users mount nothing")
def test_a_full_disk_is_one_line_and_with_room_the_run_goes_on() -> None:
    """Full at the cache, at the settings, in training and at the result's files."""
    sizes = ["4", "32", "64", "160"]
    done = execute(*ALONE, sys.executable, f"{ROOT}/scripts/full_disk.py", *sizes)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("No space left on device") == done.stdout.count(": equal\n") == len(sizes)


@pytest.mark.integration
@pytest.mark.skipif(not MAY_MOUNT, reason="this system lets users mount nothing")
def test_workers_need_no_shared_memory(place: Path) -> None:
    script = 'mount -t tmpfs -o size=4k none /dev/shm && exec "$@"'
    done = execute(*ALONE, "sh", "-c", script, "sh", sys.executable, "-c", MAIN, *WORKERS)
    assert done.returncode == 0, done.stderr
    assert (place / "run/result.json").is_file()


@pytest.mark.integration
def test_a_worker_that_dies_at_its_start_ends_the_run_with_one_line(place: Path) -> None:
    """Before it has met the others, which would wait for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-c", MAIN, *WORKERS], env=environment, stderr=subprocess.PIPE, text=True)
    while run.poll() is None:
        found = subprocess.run(["pgrep", "-P", str(run.pid), "-f", "spawn_main"], capture_output=True, text=True)
        if found.stdout:
            os.kill(int(found.stdout.split()[0]), signal.SIGKILL)
            break
        time.sleep(0.01)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 1
    assert errors.count("another of this run's processes ended before its time") == 1
    assert "Traceback" not in errors


@pytest.mark.integration
@pytest.mark.skipif(not MAY_MOUNT, reason="this system lets users mount nothing")
def test_a_read_only_folder_is_one_line(place: Path) -> None:
    """Root may write where permissions forbid it, but not in a file system that is read only."""
    (place / "outputs").mkdir()
    script = 'mount -t tmpfs -o ro none outputs && exec "$@"'
    done = execute(*ALONE, "sh", "-c", script, "sh", sys.executable, "-c", MAIN, *TINY)
    assert done.returncode == 2
    assert done.stderr.startswith(f"metarun: the run folder {place}/outputs/")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def trained(metarun: Command, place: Path) -> Path:
    assert metarun(*TINY, "hydra.run.dir=run").code == 0
    return place / "run"


@pytest.mark.parametrize("owner", ["", "4194304\nanother-host\n"])
def test_a_lock_file_without_its_process_holds_nobody_up(metarun: Command, trained: Path, owner: str) -> None:
    """The system lets go of a dead process's lock; what stands in the file does not matter."""
    (trained / ".lock").write_text(owner)
    (trained / "result.json").unlink()
    assert metarun("resume", "run").code == 0
    assert (trained / "result.json").is_file()


def test_two_tests_at_once_in_one_folder_are_refused(metarun: Command, trained: Path) -> None:
    with FileLock(trained / "tests/again/.lock"):
        answer = metarun("evaluate", "run")
    assert answer.code == 2
    assert answer.err.endswith("tests/again: wait for it, or change a setting\n")
    assert metarun("evaluate", "run").code == 0


@pytest.mark.integration
@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["export", "run", "model.pt2"], 1, "model.pt2: File too large"),
        (
            ["data", "glyphs", "--preview=glyphs.png"],
            2,
            "the cache {place}/cache cannot be written (File too large)",
        ),
    ],
)
def test_what_pytorch_cannot_write_is_one_line(
    place: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int, told: str
) -> None:
    """A file may have 8 KiB, as on a disk that is nearly full; PyTorch's own writing to a file aborts the process."""
    if words[0] == "export":
        request.getfixturevalue("trained")
    monkeypatch.setenv("METARUN_CACHE", str(place / "cache"))
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192)); {MAIN}"
    done = execute(sys.executable, "-c", limit, *words)
    assert (done.returncode, done.stderr.count("\n")) == (code, 1), done.stderr
    assert done.stderr.startswith(f"metarun: {told.format(place=place)}")
    assert not [*place.glob("model*"), *place.glob("cache/glyphs*/*")]


def test_what_a_killed_process_left_half_written_is_removed(metarun: Command, trained: Path) -> None:
    files = (".result.json", "checkpoints/.last.pt", "scores/.test.csv")
    left = [trained / f"{name}.4194304.partial" for name in files]
    for file in left:
        file.write_bytes(b"half")
    assert metarun("resume", "run").code == 0
    assert not any(file.exists() for file in left)


def test_a_clock_that_jumps_back_changes_nothing(
    metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour whenever it is read."""
    clock = itertools.count(1.7e9, -3600)
    assert metarun(*TINY, "hydra.run.dir=straight").code == 0
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: next(clock))
        answer = metarun(*TINY, "hydra.run.dir=back")
    assert answer.code == 0, answer.err
    for file in ("metrics.jsonl", "scores/test.csv"):
        assert (place / "back" / file).read_bytes() == (place / "straight" / file).read_bytes()
