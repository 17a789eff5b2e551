"""The files that a run writes while it goes, and what is drawn from them."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from metarun.engine.evaluate import Scores
from metarun.runs.artifacts import describe_result, draw_curves, draw_vectors, write_scores
from metarun.runs.folder import RunFolder
from metarun.runs.log import RunLog
from metarun.runs.loggers import NoLogger
from metarun.runs.result import Checkpoint, Estimate, Evaluation, Row


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
    write_scores(tmp_path / "scores" / "test.csv", Scores({"accuracy": torch.tensor([0.5, 0.25])}, ""), classes)
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


def test_damaged_lines_of_a_metrics_file_are_dropped(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1\n{"step": 1, "split": "train"}\n{"st\n[]\n')
    RunLog(tmp_path, NoLogger(), step=5).close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "split": "train"}\n'
