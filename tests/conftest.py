"""Running metarun as a user does: in this process, which is fast, or in one of its own, which is the real thing."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import settings

from metarun.cli import main as cli
from metarun.datasets.storage.known_sets import KNOWN_SETS
from metarun.engine.process import prepare_cpu
from metarun.runs.log import say
from tests.support.tiny_pictures import CLASSES, PER_CLASS

import_module("setuptools")  # PyTorch's compiler imports it, which fails for good once a test has looked for pip
prepare_cpu()  # as the command does: training in this process is as quick as it is there
settings.register_profile("metarun", deadline=None)  # a busy machine is no failure
settings.load_profile("metarun")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process per core has no use for more threads
    torch.set_num_threads(1)

TINY = (
    "dataset=glyphs",
    "dataset.classes_train=20",
    "dataset.classes_val=10",
    "dataset.classes_test=10",
    "backbone.filters=4",
    "trainer.steps=4",
    "trainer.eval_every=2",
    "trainer.log_every=1",
    "trainer.tasks_per_step=2",
    "eval.tasks=20",
    "eval.val_tasks=10",
    "device=cpu",
)


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Outcome]


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for the session and all its processes: the same glyphs are drawn, and real sets are packed, once."""
    base = tmp_path_factory.getbasetemp()
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    cache.mkdir(exist_ok=True)
    return cache


@pytest.fixture
def data_folder() -> str | None:
    """METARUN_DATA as it was before `place` took it away."""
    return os.environ.get("METARUN_DATA")


@pytest.fixture
def place(tmp_path: Path, shared_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with a cache that is not the user's and no data folder."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("METARUN_CACHE", str(shared_cache))
    monkeypatch.delenv("METARUN_DATA", raising=False)
    return folder


@pytest.fixture
def picture_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of one's own, and a miniImageNet no larger than the copies in tests/support/tiny_pictures.py."""
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    small = replace(
        KNOWN_SETS["miniimagenet"], classes=(CLASSES["train"], CLASSES["val"], CLASSES["test"]), per_class=PER_CLASS
    )
    monkeypatch.setitem(KNOWN_SETS, "miniimagenet", small)
    return tmp_path / "cache"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Where a test puts them."""
    return tmp_path / "pictures"


@pytest.fixture
def undone() -> Iterator[None]:
    """What `main` does to the process is undone."""
    handler, spins = signal.getsignal(signal.SIGTERM), os.environ.get("GOMP_SPINCOUNT")
    yield
    signal.signal(signal.SIGTERM, handler)
    if spins is None:
        os.environ.pop("GOMP_SPINCOUNT", None)


@pytest.fixture
def metarun(place: Path, undone: None, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    """`metarun("seed=3")` in this process: exit code, standard output and error."""

    def run(*arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["metarun", *arguments])
        monkeypatch.setattr(say, "handlers", [])  # as in a new process: pytest's own are taken for metarun's
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert isinstance(ended.value.code, int)
        return Outcome(ended.value.code, *capfd.readouterr())

    return run


@pytest.fixture
def metarun_process(place: Path) -> Command:
    """The same in a process of its own; `after` is a Python statement that runs at its end."""

    def run(*arguments: str, after: str = "pass") -> Outcome:
        code = f"import sys\nfrom metarun.cli.main import main\ntry: main()\nfinally: {after}"
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            timeout=120,
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    return run
