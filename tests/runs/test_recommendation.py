"""Recommendation, from the command to the result: rows of rules, and of other data than in training."""

import json
from pathlib import Path

import pytest

from tests.conftest import Command


@pytest.mark.integration
def test_ridge_regression_learns_what_can_be_known_of_users_with_few_tastes(metarun: Command, place: Path) -> None:
    """A few seconds of training come within a tenth of who knows how the users were made, with less noise too."""
    answer = metarun(
        "experiment=r2d2/low_rank",
        "trainer.steps=200",
        "eval.tasks=300",
        "eval.tasks_per_chunk=50",
        "eval.variants={clear: {dataset: {noise: 0.1}}, alone: {algo: {norm: batch}}}",
        "trainer.workers=1",
        "device=cpu",
        "hydra.run.dir=run",
    )
    assert answer.code == 0, answer.err
    rows = json.loads((place / "run/result.json").read_text(encoding="utf-8"))["test"]
    rules = {"bayes", "ridge", "mean"}
    assert rows.keys() == {"test", "untrained", "clear", "alone"} | rules | {f"clear_{rule}" for rule in rules}
    error = {name: row["mae"]["mean"] for name, row in rows.items()}
    assert error["bayes"] < error["test"] < 1.1 * error["bayes"]
    assert error["test"] < 0.6 * error["ridge"] < error["mean"]
    assert error["clear"] < 0.7 * error["test"]
    assert error["clear_bayes"] < 0.5 * error["bayes"]
    assert [rows[name].get("dataset") for name in ("test", "clear", "clear_bayes")] == [None, *[{"noise": 0.1}] * 2]
    assert rows["test"]["task_hash"] == rows["bayes"]["task_hash"] != rows["clear"]["task_hash"]
