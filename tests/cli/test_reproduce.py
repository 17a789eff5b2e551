"""`metarun reproduce`: which runs a table has, how long they take, and that no kill changes the table."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metarun.cli import reproduce as reproducing
from metarun.cli.reproduce import experiments, outlook, request
from metarun.config.errors import ConfigError
from tests.conftest import Command

TABLE = ("sinusoid", "length=smoke", "cells=maml/*,cavia/*", "trainer.steps=60", "trainer.eval_every=5")


def test_a_table_is_the_experiments_on_a_dataset() -> None:
    found = experiments("sinusoid", "short", [])
    assert {"maml/sinusoid", "reptile/sinusoid"} <= set(found)
    assert all(name.endswith("/sinusoid") for name in found)
    assert experiments("omniglot", "short", ["maml/*_5w1s"]) == ["maml/omniglot_5w1s"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("omniglott", "short", []), r"there is no table 'omniglott': choose from .* \(did you mean omniglot\?\)"),
        (("sinusoid", "short", ["mml/*"]), r"cells has 'mml/\*': it fits none of .*maml/sinusoid"),
        (("sinusoid", "paper", []), r"length is paper: there is no such experiment of .*reptile/sinusoid"),
    ],
)
def test_what_is_not_there_is_said(arguments, message) -> None:
    with pytest.raises(ConfigError, match=message):
        experiments(*arguments)


def test_a_request_is_a_length_cells_and_settings() -> None:
    assert request(["length=paper", "seed=1", "cells=a/*,b/*"]) == ("paper", ["a/*", "b/*"], ["seed=1"])
    assert request([]) == ("short", [], [])
    with pytest.raises(ConfigError, match="length is 'long': choose from paper, short, smoke"):
        request(["length=long"])


def test_the_time_is_told_of_what_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "result.json").write_text("{}")
    monkeypatch.setattr(reproducing, "_seconds", lambda overrides: 150.0)
    jobs = {tmp_path: ["a=1", "c=1"], tmp_path / "b": ["a=2", "c=1"], tmp_path / "d": ["a=3", "c=1"]}
    assert outlook(jobs) == [
        "a=1: done",
        "a=2: about 2 min",
        "a=3: about 2 min",
        "together about 5 min, by a few steps of each in one process",
    ]


def test_a_dry_run_runs_nothing(metarun: Command, place: Path) -> None:
    answer = metarun("reproduce", *TABLE, "--dry-run")
    assert answer.code == 0, answer.err
    assert answer.out.startswith("experiment=cavia/sinusoid: about ")
    assert list(place.iterdir()) == []


def table(place: Path) -> list[dict[str, str]]:
    with (place / "report" / "sinusoid-smoke" / "report.csv").open() as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


def test_killed_twice_it_ends_with_the_same_table(
    metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metarun("reproduce", *TABLE).code == 0
    expected = table(place)
    assert len(expected) == 2
    again = place / "again"
    again.mkdir()
    program = "import sys; sys.argv[0] = 'metarun'; from metarun.cli.main import main; main()"
    for kill in range(2):
        started = subprocess.Popen(
            [sys.executable, "-c", program, "reproduce", *TABLE],
            cwd=again,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        checkpoints = 1 + kill
        while len(list(again.glob("outputs/*/*/checkpoints/last.pt"))) < checkpoints and started.poll() is None:
            time.sleep(0.02)
        time.sleep(random.random() / 5)
        started.send_signal(signal.SIGKILL)
        started.wait()
    monkeypatch.chdir(again)
    answer = metarun("reproduce", *TABLE)
    assert answer.code == 0, answer.err
    assert table(again) == expected
