"""What makes a figure suspect: no better than guessing, the same for every task, or from a loss that went astray."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path

from metarun.config.registry import metric
from metarun.runs.result import BESIDE, Row

ROUNDING = 1e-6  # of scores in float32
ABSURD = 1000.0  # nats of cross-entropy, or times the mean square of the targets


def find_warnings(rows: Mapping[str, Row], headline: str, loss: float | None, scale: float = 1.0) -> list[str]:
    """Return one line for each thing that is wrong with the rows of a test, or with the last loss of the training.

    scale: in regression the mean square of the targets, which is the error of predicting 0; otherwise 1.
    """
    found = [] if loss is None or abs(loss) <= ABSURD * scale else [f"training: the loss is {loss:.3g} at its end"]
    return found + [
        f"{name}: {text}" for name, row in rows.items() if name not in BESIDE for text in _doubt(row, headline, scale)
    ]


def _doubt(row: Row, headline: str, scale: float) -> Iterator[str]:
    estimate, shown = row.metrics[headline], metric(headline)
    mean, ci95 = estimate.mean, estimate.ci95
    assert isinstance(mean, float)
    assert not isinstance(ci95, list)
    if not math.isfinite(mean):
        yield f"the {headline} of some tasks is not a finite number"
        return
    guessed = shown.guessed(row.ways)
    if guessed is not None and mean - (ci95 or 0.0) <= guessed + ROUNDING:
        yield f"{headline} {shown.shown(mean, ci95)} is no better than guessing, which gets {shown.shown(guessed)}"
    if not shown.higher_is_better and mean > ABSURD * scale:
        yield f"{headline} {mean:.3g} is far more than predicting 0 gets, {scale:.3g}"
    if ci95 == 0:
        yield f"all {row.tasks} tasks have the same score, so that ± 0 says nothing"


def read_last_loss(folder: Path) -> float | None:
    """The loss of the last training steps in `metrics.jsonl`; nan if it was not finite, None if there is none."""
    for line in reversed((folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()):
        values = json.loads(line)
        if values["split"] == "train" and "loss" in values:
            return math.nan if values["loss"] is None else float(values["loss"])
    return None
