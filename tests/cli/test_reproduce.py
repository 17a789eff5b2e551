"""`metarun reproduce`: which runs a table has, how long they take, and the same table after a kill."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metarun.cli.compose import compose
from metarun.cli.outlook import find_rates
from metarun.cli.reproduce import Length, choose, estimate, read
from metarun.cli.sweep import label_jobs
from metarun.config.errors import ConfigError
from metarun.config.load import resolve
from tests.conftest import Command
from tests.support.tiny_runs import omniglot_result

TABLE = ("sinusoid", "length=smoke", "cells=maml/*,cavia/*", "trainer.steps=60", "trainer.eval_every=5")


def test_a_table_is_the_experiments_on_a_dataset() -> None:
    found = choose("sinusoid", "short", [])
    assert {"maml/sinusoid", "reptile/sinusoid"} <= set(found)
    assert all(name.endswith("/sinusoid") for name in found)
    assert choose("omniglot", "short", ["maml/*_5w1s"]) == ["maml/omniglot_5w1s"]
    assert choose("omniglot_emnist", "short", ["maml/*"]) == ["maml/omniglot_emnist_5w1s", "maml/omniglot_emnist_5w5s"]
    assert "protonet/fs_mol" in choose("fs_mol", "short", [])


@pytest.mark.parametrize(
    ("table", "length", "cells", "message"),
    [
        ("omniglott", "short", [], r"there is no table 'omniglott': the nearest of .* are omniglot, "),
        ("sinusoid", "short", ["mml/*"], r"cells has 'mml/\*', which fits no experiment: .*maml/sinusoid"),
        ("sinusoid", "paper", [], r"length is paper: .*reptile/sinusoid.* have no such form"),
    ],
)
def test_what_is_not_there_is_said(table: str, length: Length, cells: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        choose(table, length, cells)


def test_a_request_is_a_length_cells_and_settings() -> None:
    assert read(["length=paper", "seed=1", "cells=a/*,b/*"]) == ("paper", ["a/*", "b/*"], ["seed=1"])
    assert read([]) == ("short", [], [])
    with pytest.raises(ConfigError, match="length is 'long': choose from paper, short, smoke"):
        read(["length=long"])


def test_the_time_is_told_of_what_is_not_done_from_what_is_recorded(tmp_path: Path) -> None:
    """300 steps of 4 tasks at 10 tasks per second take 2 minutes, 900 steps 6.

    Other settings have other rates, and runs that were shorter or too short do not count.
    """
    common = ["trainer.tasks_per_step=4", "dataset=sinusoid", "experiment=null"]
    jobs = label_jobs(
        [([f"trainer.steps={steps}", *common], tmp_path / name) for steps, name in ((9, "a"), (300, "b"), (900, "c"))]
    )
    recorded = (("a", 5, 60, 10.0), ("elsewhere", 3, 60, 99.0), ("shorter", 5, 50, 98.0), ("short", 3, 9, 97.0))
    for name, ways, seconds, rate in recorded:
        (tmp_path / name).mkdir()
        training = {"steps": 9, "seconds": seconds, "tasks_per_second": rate}
        result = omniglot_result() | {"config": resolve(compose([f"ways={ways}", *common])), "training": training}
        (tmp_path / name / "result.json").write_text(json.dumps(result))
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "result.json").write_text("{")
    assert sorted(find_rates(tmp_path).values()) == [10.0, 99.0]
    unknown = label_jobs([([*common, "ways=9"], tmp_path / "d")])
    assert list(estimate([jobs[1], *unknown], tmp_path))[1:] == [
        "[1/1] trainer.tasks_per_step=4 dataset=sinusoid experiment=null ways=9: not timed yet",
        "together about 2 min and 1 job not timed yet",
    ]
    assert list(estimate(jobs, tmp_path)) == [
        "[1/3] trainer.steps=9: done",
        "[2/3] trainer.steps=300: about 2 min",
        "[3/3] trainer.steps=900: about 6 min",
        "together about 8 min",
    ]


def test_each_line_is_known_before_the_next_job_is_looked_at(tmp_path: Path) -> None:
    jobs = label_jobs([(["dataset=sinusoid"], tmp_path / "a"), (["dataset=unheard"], tmp_path / "b")])
    lines = estimate(jobs, tmp_path)
    assert next(lines) == "[1/2] dataset=sinusoid: not timed yet"
    with pytest.raises(ConfigError, match="dataset is 'unheard'"):
        next(lines)


def test_a_dry_run_runs_nothing(metarun: Command, place: Path) -> None:
    answer = metarun("reproduce", *TABLE, "--dry-run")
    assert answer.code == 0, answer.err
    assert answer.out.splitlines() == [
        "[1/2] experiment=cavia/sinusoid: not timed yet",
        "[2/2] experiment=maml/sinusoid: not timed yet",
        "2 jobs not timed yet",
    ]
    assert list(place.iterdir()) == []


def table(place: Path) -> list[dict[str, str]]:
    with (place / "report" / "sinusoid-smoke" / "report.csv").open() as file:
        return [{key: value for key, value in row.items() if "seconds" not in key} for row in csv.DictReader(file)]


@pytest.mark.integration
def test_killed_twice_it_ends_with_the_same_table(
    metarun: Command, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert metarun("reproduce", *TABLE).code == 0
    expected = table(place)
    assert len(expected) == 4  # each with its untrained row
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
