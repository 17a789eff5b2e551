"""Ranks per probe and the table of calibration, from the files that probes write."""

import json
from pathlib import Path
from typing import Any

import pytest

from metarun.config.errors import ConfigError
from metarun.reports.collect import Run, read_runs
from metarun.reports.robustness import rank
from metarun.reports.tables import Report
from metarun.reports.text import to_markdown
from metarun.reports.web import to_html
from tests.support.tiny_runs import omniglot_result, write_run


def write_finding(run: Path, probe: str, mean: float, better: bool = True, tasks: int = 100) -> None:
    task = {"ways": 5, "shots": 1, "queries": 1, "tasks": tasks}
    table: list[dict[str, Any]] = [{"accuracy": {"mean": mean, "ci95": 0.01}}]
    if probe == "calibration":
        numbers = {name: {"mean": mean, "ci95": 0.01} for name in ("ece", "nll", "brier")}
        table = [{"temperature": t, "if calibrated": "0.01 to 0.02", "mce": 0.3, **numbers} for t in (1.0, 0.5)]
    facts = task | {"score": {"mean": mean, "ci95": 0.01}, "higher_is_better": better, "table": table}
    (run / "probes").mkdir(exist_ok=True)
    (run / "probes" / f"{probe}.json").write_text(json.dumps(facts))


def write_method(folder: Path, algo: str, clean: float) -> Path:
    result = omniglot_result()
    result["choices"] = {"algo": algo, "experiment": None}
    result["config"]["algo"] = {"name": algo}
    result["test"]["test"]["accuracy"]["mean"] = clean
    write_run(folder / algo, result, "[]")
    return folder / algo


def test_equals_share_a_rank() -> None:
    scores = {"a": 0.5, "b": 0.9, "c": 0.5}
    assert rank(scores, True) == {"a": 2.5, "b": 1, "c": 2.5}
    assert rank(scores, False) == {"a": 1.5, "b": 3, "c": 1.5}


def test_methods_are_ranked_by_each_probe(tmp_path: Path) -> None:
    for algo, clean, noise, error in (
        ("maml", 0.9, 0.5, 0.02),
        ("anil", 0.8, 0.6, 0.01),
        ("protonet", 0.85, 0.4, None),
    ):
        run = write_method(tmp_path, algo, clean)
        write_finding(run, "noise", noise)
        if error is not None:
            write_finding(run, "calibration", error, better=False)
    report = Report(read_runs([tmp_path]))
    (section,) = report.robustness
    assert section.title == "Robustness: omniglot, 5-way 1-shot, 1 queries, 100 tasks"
    assert section.tables[0].header == ("method", "clean", "calibration", "noise", "mean rank")
    assert section.tables[0].rows == [
        ("anil", "80.00 % (3)", "0.0100 (1)", "60.00 % (1)", "1.67"),
        ("maml", "90.00 % (1)", "0.0200 (2)", "50.00 % (2)", "1.67"),
        ("protonet", "85.00 % (2)", "", "40.00 % (3)", "2.50"),
    ]
    (section,) = report.calibration
    assert [row[:3] for row in section.tables[0].rows] == [
        ("anil", "1", "0.0100 ± 0.0100"),
        ("anil", "0.5", "0.0100 ± 0.0100"),
        ("maml", "1", "0.0200 ± 0.0100"),
        ("maml", "0.5", "0.0200 ± 0.0100"),
    ]
    assert "## Robustness: omniglot" in to_markdown(report)
    assert "Calibration: omniglot" in to_html(report)


def test_other_numbers_of_tasks_are_another_table(tmp_path: Path) -> None:
    for algo, tasks in (("maml", 100), ("anil", 50)):
        write_finding(write_method(tmp_path, algo, 0.9), "noise", 0.5, tasks=tasks)
    assert len(Report(read_runs([tmp_path])).robustness) == 2


def test_a_probe_of_fewer_tasks_says_so_in_the_table_of_the_others(tmp_path: Path) -> None:
    for algo, clean, tasks in (("maml", 0.9, 100), ("anil", 0.8, 20)):
        run = write_method(tmp_path, algo, clean)
        write_finding(run, "corruption", clean - 0.1, tasks=tasks)
        write_finding(run, "noise", 0.5)
    (section,) = Report(read_runs([tmp_path])).robustness
    assert section.tables[0].rows == [
        ("maml", "90.00 % (1)", "80.00 % (1)", "50.00 % (1.5)", "1.17"),
        ("anil", "80.00 % (2)", "70.00 % of 20 tasks (2)", "50.00 % (1.5)", "1.83"),
    ]


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    run = write_method(tmp_path, "maml", 0.9)
    (run / "probes").mkdir()
    (run / "probes/noise.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"noise\.json is damaged"):
        Run.read(run)
