"""What makes a figure suspect, and that result.json is strict JSON whatever was measured."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import pytest

from metarun.core.statistics import Estimate
from metarun.runs.folder import RunFolder
from metarun.runs.log import RunLog
from metarun.runs.loggers import NoLogger
from metarun.runs.result import Checkpoint, Evaluation, Row
from metarun.runs.warnings import find_warnings, read_last_loss
from tests.conftest import TINY, Command


def row(headline: str, mean: float, ci95: float | None) -> Row:
    return Row({headline: Estimate(mean, ci95)}, 5, 1, 1, 9, "", {}, False)


@pytest.mark.parametrize(
    ("headline", "mean", "ci95", "loss", "told"),
    [
        ("accuracy", 0.6, 0.01, 1.2, []),
        ("accuracy", 0.22, 0.01, 1.6, []),  # 21 % at the least
        ("accuracy", 0.22, 0.03, 1.6, ["test: accuracy 22.00 ± 3.00 % is no better than guessing, which gets 20.00 %"]),
        ("accuracy", 0.1, 0.03, 1.6, ["test: accuracy 10.00 ± 3.00 % is no better than guessing, which gets 20.00 %"]),
        ("accuracy", 0.2, None, 1.6, ["test: accuracy 20.00 % is no better than guessing, which gets 20.00 %"]),
        ("accuracy", 0.9, 0.0, 0.1, ["test: all 9 tasks have the same score, so that ± 0 says nothing"]),
        ("accuracy", 0.6, 0.01, 7e28, ["training: the loss is 7e+28 at its end"]),
        ("accuracy", 0.6, 0.01, math.nan, ["training: the loss is nan at its end"]),
        ("delta_auprc", 0.1, 0.01, 0.6, []),
        ("delta_auprc", 0.01, 0.02, 0.6, [
            "test: delta_auprc 0.0100 ± 0.0200 is no better than guessing, which gets 0.0000"
        ]),
        ("mse", 0.3, 0.1, 0.3, []),
        ("mse", 4.5, 0.1, 4.5, []),
        ("mse", 1e9, 1e8, 1.0, ["test: mse 1e+09 is far more than predicting 0 gets, 4"]),
        ("mse", 1.0, 0.1, 1e9, ["training: the loss is 1e+09 at its end"]),
        ("mse", math.nan, math.nan, 1.0, ["test: the mse of some tasks is not a finite number"]),
    ],
)  # fmt: skip
def test_what_is_told(headline: str, mean: float, ci95: float | None, loss: float, told: list[str]) -> None:
    scale = 4.0 if headline == "mse" else 1.0
    assert find_warnings({"test": row(headline, mean, ci95)}, headline, loss, scale) == told


def refuse(constant: str) -> NoReturn:
    raise AssertionError(constant)


def test_what_is_no_number_is_null(tmp_path: Path) -> None:
    folder, rows = RunFolder(tmp_path), {"test": row("mse", math.nan, None)}
    rows["test"].metrics["mse_by_step"] = Estimate([1.0, math.inf], [0.5, math.nan])
    folder.finish(
        Evaluation(headline="mse", kind="regression", rows=rows, checkpoint=Checkpoint("best", 1), dataset={})
    )
    written = json.loads((tmp_path / "result.json").read_text(), parse_constant=refuse)["test"]["test"]
    assert (written["mse"], written["mse_by_step"]) == (
        {"mean": None, "ci95": None},
        {"mean": [1.0, None], "ci95": [0.5, None]},
    )
    read = Row.from_json(written)
    assert math.isnan(read.metrics["mse"].mean)  # type: ignore[arg-type]
    assert read.metrics["mse"].ci95 is None


def test_the_last_loss_of_the_training(tmp_path: Path) -> None:
    log = RunLog(tmp_path, NoLogger())
    log.metrics(1, "train", {"loss": 2.0})
    log.metrics(2, "train", {"loss": 1.0})
    log.metrics(2, "val", {"loss": 5.0})
    assert read_last_loss(tmp_path) == 1.0
    log.metrics(3, "train", {"loss": math.inf})
    assert math.isnan(read_last_loss(tmp_path))  # type: ignore[arg-type]
    for line in (tmp_path / "metrics.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)


def result_of(answer: Any) -> dict[str, Any]:
    assert answer.code == 0, answer.err
    return dict(json.loads(Path("run/result.json").read_text(), parse_constant=refuse))


@pytest.mark.integration
def test_a_collapsed_run_says_so(metarun: Command) -> None:
    small = ["dataset.classes_test=5", "trainer.steps=1", "hydra.run.dir=run"]
    answer = metarun(*TINY, *small, "algo.inner_lr=1e30", "trainer.clip_value=1")
    result = result_of(answer)
    assert (result["test"]["test"]["classes"], result["test"]["test"]["ci95_over_classes"]) == (5, None)
    assert any("no better than guessing" in text for text in result["warnings"])
    assert any(text.startswith("training: the loss is ") for text in result["warnings"])
    for text in result["warnings"]:
        assert f"warning: {text}" in answer.out
    assert "all tasks are of the same 5 classes: ± covers the draw of the examples alone" in answer.out


@pytest.mark.integration
def test_a_single_task_has_no_interval(metarun: Command) -> None:
    answer = metarun(*TINY, "trainer.steps=1", "eval.tasks=1", "eval.val_tasks=1", "hydra.run.dir=run")
    result = result_of(answer)
    assert result["test"]["test"]["accuracy"]["ci95"] is None
    assert result["test"]["test"]["accuracy_by_step"]["ci95"] is None
    (line,) = (line for line in answer.out.splitlines() if line.startswith("test "))
    assert "±" not in line
    assert answer.err == ""
    assert metarun("report", "run").code == 0
