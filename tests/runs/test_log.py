"""The files that a run writes while it goes, and what is drawn from them."""

import csv
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarun.core.statistics import Estimate
from metarun.engine import checkpoint
from metarun.engine.evaluate import Scores
from metarun.runs.artifacts import describe_result, draw_curves, draw_vectors, write_scores
from metarun.runs.folder import RunFolder
from metarun.runs.log import RunLog, say, speak
from metarun.runs.loggers import NoLogger
from metarun.runs.result import Checkpoint, Evaluation, Row
from tests.conftest import TINY, Command


def test_a_continued_metrics_file_drops_what_lies_beyond_the_checkpoint(tmp_path: Path) -> None:
    log = RunLog(tmp_path, NoLogger())
    for step in (10, 20, 30):
        log.metrics(step, "train", {"loss": 1 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "split": "tr')  # killed while it wrote
    RunLog(tmp_path, NoLogger(), step=20).metrics(30, "val", {"accuracy": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(10, "train"), (20, "train"), (30, "val")]


def test_the_table_has_a_column_for_every_metric(tmp_path: Path) -> None:
    log = RunLog(tmp_path, NoLogger())
    log.metrics(1, "train", {"loss": 0.5, "lr": 0.1})
    log.metrics(2, "val", {"accuracy": 0.25})
    log.close()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert rows == [
        {"step": "1", "split": "train", "loss": "0.5", "lr": "0.1", "accuracy": ""},
        {"step": "2", "split": "val", "loss": "", "lr": "", "accuracy": "0.25"},
    ]
    draw_curves(tmp_path, "accuracy")
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_scores_of_each_task_with_a_column_for_each_entry_of_a_vector(tmp_path: Path) -> None:
    scores = Scores({"mse": torch.tensor([0.5, 2.0]), "by_step": torch.tensor([[1.0, 0.5], [3.0, 2.0]])})
    write_scores(tmp_path / "scores" / "test.csv", scores)
    assert (tmp_path / "scores" / "test.csv").read_text().split() == [
        "task,mse,by_step_0,by_step_1",
        "0,0.5,1.0,0.5",
        "1,2.0,3.0,2.0",
    ]


@pytest.mark.parametrize("ways", [1, 3])
def test_scores_name_the_classes_of_each_task_in_the_order_of_its_labels(ways: int, tmp_path: Path) -> None:
    classes = torch.tensor([[7, 0, 12], [3, 7, 1]])[:, :ways]
    write_scores(tmp_path / "scores" / "test.csv", Scores({"accuracy": torch.tensor([0.5, 0.25])}), classes)
    folder = RunFolder(tmp_path)
    found, scores = folder.read_classes("test"), folder.read_scores("test", "accuracy")
    assert found is not None
    assert scores is not None
    assert (found.tolist(), scores.tolist()) == (classes.tolist(), [0.5, 0.25])


def test_figures_with_several_values_per_task_are_told_and_drawn_whatever_they_are(tmp_path: Path) -> None:
    vector, accuracy = Estimate([0.25, 0.75], [0.01, 0.02]), Estimate(0.75, 0.02)
    row = Row({"accuracy": accuracy, "accuracy_by_instance": vector}, 5, 1, 1, 9, "", {}, False)
    rows = {"test": row, "other": replace(row, metrics={"accuracy": accuracy, "accuracy_by_step": vector})}
    draw_vectors(tmp_path, rows)
    assert {file.name for file in tmp_path.iterdir()} == {"accuracy_by_instance.png", "accuracy_by_step.png"}
    test = Evaluation(
        headline="accuracy", kind="classification", rows=rows, checkpoint=Checkpoint("best", 1), dataset={}
    )
    task = "(5-way 1-shot, 1 query per class, 9 tasks, inductive)"
    assert [" ".join(line.split()) for line in describe_result(test)] == [
        f"test accuracy 75.00 ± 2.00 % {task}",
        "accuracy by instance: 25.00 75.00 %",
        f"other accuracy 75.00 ± 2.00 % {task}",
        "accuracy by step: 25.00 75.00 %",
    ]


def test_a_single_task_has_no_interval_to_explain() -> None:
    row = Row({"accuracy": Estimate(0.75, None)}, 5, 1, 1, 1, "", {}, False, classes=5)
    checkpoint = Checkpoint("best", 1)
    test = Evaluation(headline="accuracy", kind="classification", rows={"test": row}, checkpoint=checkpoint, dataset={})
    (line,) = describe_result(test)
    assert "±" not in line


def test_damaged_lines_of_a_metrics_file_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1\n{"step": 1, "split": "train"}\n{"st\n[]\n')
    RunLog(tmp_path, NoLogger(), step=5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "split": "train"}\n'


def test_where_nobody_watches_a_silent_run_says_that_it_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    handlers, say.handlers = say.handlers, []
    try:
        with speak(silence=0.05), speak(silence=0.05):
            say.info("packing")
            for _ in range(200):
                time.sleep(0.02)
                if capsys.readouterr().out.count("s after: packing") >= 1:
                    break
            else:
                raise AssertionError("it was silent for four seconds")
        time.sleep(0.2)
        capsys.readouterr()
        time.sleep(0.2)
        assert capsys.readouterr().out == ""
        assert say.handlers == []
    finally:
        say.handlers = handlers


@pytest.mark.integration
def test_a_run_says_what_it_is_about_to_do_and_keeps_what_is_to_know_of_the_data(metarun: Command, place: Path) -> None:
    answer = metarun(*TINY, "hydra.run.dir=run")
    assert answer.out.splitlines()[:4] == [
        "maml on glyphs (classes train 20, val 10, test 10): 5-way 1-shot, 5 queries per class",
        answer.out.splitlines()[1],
        f"in {place / 'run'}",
        answer.out.splitlines()[3],
    ]
    theta = checkpoint.load(place / "run" / "checkpoints" / "last.pt")[0]["theta"]
    weights = sum(p.numel() for part in theta.values() for p in part.values())
    assert answer.out.splitlines()[1].startswith(f"{weights:,} weights on ")
    assert answer.out.splitlines()[1].endswith(", 4 steps of 2 tasks")
    trained = [line for line in answer.out.splitlines() if ": train loss " in line]
    assert [line.partition(":")[0] for line in trained] == [f"step {i}" for i in range(1, 5)]
    result = RunFolder(place / "run").result()
    assert result is not None
    assert result.notes == []
