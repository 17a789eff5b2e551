"""NIL: another method's network, tested without its head through the command; what cannot be tested so is told."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.config.load import load_settings
from metarun.core.batch import unstack
from metarun.engine import checkpoint
from metarun.engine.build import Experiment
from metarun.engine.evaluate import draw_fixed_tasks
from metarun.runs.folder import RunFolder
from tests.conftest import TINY, Command
from tests.reference.nil import plain_logits


@pytest.fixture
def folder(metarun: Command, place: Path) -> Path:
    """A tiny run of MAML, tested with two drawings of a class and with a variant without its head."""
    variant = "eval.variants.nil={algo: {name: nil, norm: batch}}"
    answer = metarun(*TINY, "hydra.run.dir=run", "algo=maml", "eval.shots=2", variant)
    assert answer.code == 0, answer.err
    return place / "run"


def rows(path: Path) -> dict[str, Any]:
    rows: dict[str, Any] = json.loads((path / "result.json").read_text(encoding="utf-8"))["test"]
    return rows


def scores(path: Path, row: str) -> list[float]:
    with (path / "scores" / f"{row}.csv").open(encoding="utf-8") as file:
        return [float(line["accuracy"]) for line in csv.DictReader(file)]


def by_hand(folder: Path) -> list[float]:
    """Each test task's accuracy from the checkpoint's weights, by the plain form."""
    experiment = Experiment.build(load_settings(RunFolder(folder).config()))
    row = experiment.plan_rows()["nil"]
    source = experiment.build_tester(row, "test").source
    theta = checkpoint.load(folder / "checkpoints/best.pt")[0]["theta"]
    tasks = [task for block in draw_fixed_tasks(source, row.tasks, row.seed, "test") for task in unstack(block)]
    with torch.no_grad():
        return [
            (plain_logits("conv4_strided", theta, task).argmax(-1) == task.query.y).float().mean().item()
            for task in tasks
        ]


@pytest.mark.integration
def test_a_network_that_maml_trained_is_tested_without_its_head(metarun: Command, folder: Path) -> None:
    expected = by_hand(folder)
    assert scores(folder, "nil") == pytest.approx(expected, abs=1e-6)
    assert scores(folder, "test") != pytest.approx(expected, abs=1e-6)
    assert (rows(folder)["nil"]["algo"], rows(folder)["nil"]["transductive"]) == (
        {"name": "nil", "norm": "batch"},
        True,
    )
    assert rows(folder)["nil_inductive"]["algo"] == {"name": "nil", "norm": "per_query"}

    answer = metarun("evaluate", "run", "algo.name=nil", "algo.norm=batch")
    assert answer.code == 0, answer.err
    (later,) = (folder / "tests").iterdir()
    assert scores(later, "test") == scores(folder, "nil")


@pytest.mark.integration
def test_without_a_head_there_may_be_other_ways(metarun: Command, folder: Path) -> None:
    answer = metarun("evaluate", "run", "algo.name=nil", "algo.norm=batch", "ways=7")
    assert answer.code == 0, answer.err
    (later,) = (folder / "tests").iterdir()
    assert rows(later)["test"]["ways"] == 7


@pytest.mark.integration
def test_a_method_that_needs_what_was_not_trained_is_refused(metarun: Command, place: Path) -> None:
    assert metarun(*TINY, "hydra.run.dir=run", "algo=nil").code == 0
    before = sorted(place.rglob("*"))
    maml = ("algo.name=maml", "algo.inner_lr=0.4", "algo.inner_steps=1", "algo.first_order=false", "algo.norm=batch")
    answer = metarun("evaluate", "run", *maml)
    assert answer.code == 2
    assert answer.err == "metarun: eval.algo.name is maml: it needs a head, which algo=nil does not learn\n"
    assert sorted(place.rglob("*")) == before
