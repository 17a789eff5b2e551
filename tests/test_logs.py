"""The files that a run writes while it goes, and what is drawn from them."""

import csv
import json
from pathlib import Path

import torch

from metarun.evaluator import Scores
from metarun.logs import NoLogger, RunLog
from metarun.report import draw_curves, write_scores


def test_a_continued_metrics_file_drops_what_lies_beyond_the_checkpoint(tmp_path: Path):
    log = RunLog(tmp_path, NoLogger())
    for step in (10, 20, 30):
        log.metrics(step, "train", {"loss": 1 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "split": "tr')  # killed while it wrote
    RunLog(tmp_path, NoLogger(), step=20).metrics(30, "val", {"accuracy": 0.5})
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(row["step"], row["split"]) for row in rows] == [(10, "train"), (20, "train"), (30, "val")]


def test_the_table_has_a_column_for_every_metric(tmp_path: Path):
    log = RunLog(tmp_path, NoLogger())
    log.metrics(1, "train", {"loss": 0.5, "lr": 0.1})
    log.metrics(2, "val", {"accuracy": 0.25})
    log.close()
    rows = list(csv.DictReader((tmp_path / "metrics.csv").read_text().splitlines()))
    assert rows == [
        {"step": "1", "split": "train", "loss": "0.5", "lr": "0.1", "accuracy": ""},
        {"step": "2", "split": "val", "loss": "", "lr": "", "accuracy": "0.25"},
    ]
    draw_curves(tmp_path)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_scores_of_each_task_with_a_column_for_each_entry_of_a_vector(tmp_path: Path):
    scores = Scores({"mse": torch.tensor([0.5, 2.0]), "by_step": torch.tensor([[1.0, 0.5], [3.0, 2.0]])}, "")
    write_scores(tmp_path / "scores" / "test.csv", scores)
    assert (tmp_path / "scores" / "test.csv").read_text().split() == [
        "task,mse,by_step_0,by_step_1",
        "0,0.5,1.0,0.5",
        "1,2.0,3.0,2.0",
    ]
