"""Heads: on raw inputs without a training, and in place of the method that trained the network."""

import csv
import json
from pathlib import Path

import pytest
import torch

from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.core.batch import unstack
from metarun.engine.build import Experiment
from metarun.engine.evaluate import draw_fixed_tasks
from metarun.runs.folder import RunFolder
from tests.conftest import TINY, Command
from tests.reference.simpleshot import unit

RAW = [word for word in TINY if not word.startswith("backbone.")] + ["algo=simpleshot", "algo.centred=false"]


def test_another_method_at_the_test_has_the_settings_of_its_file() -> None:
    logistic, beside = "++eval.algo={name: logistic, penalty: 0.5}", "++eval.variants.tip={algo: {name: tip_adapter}}"
    own, same = "++eval.variants.own={algo: {name: baseline}}", "++eval.variants.more={shots: 5}"
    settings = load_settings(resolve(compose(["algo=baseline", "experiment=null", logistic, beside, own, same])))
    assert settings.eval.algo == {"name": "logistic", "penalty": 0.5, "iterations": 100, "norm": "running"}
    assert settings.eval.variants["tip"] == {"algo": {"name": "tip_adapter", "beta": 5.5, "norm": "running"}}
    assert settings.eval.variants["own"] == {"algo": settings.algo}
    assert settings.eval.variants["more"] == {"shots": 5}


@pytest.mark.integration
def test_raw_inputs_are_tested_without_a_training(metarun: Command, place: Path) -> None:
    answer = metarun(*RAW, "backbone=raw", "hydra.run.dir=run")
    assert answer.code == 0, answer.err
    result = json.loads((place / "run/result.json").read_text(encoding="utf-8"))
    assert (result["training"]["steps"], result["checkpoint"]["step"]) == (0, 0)

    experiment = Experiment.build(load_settings(RunFolder(place / "run").config()))
    row = experiment.plan_rows()["test"]
    source = experiment.build_tester(row, "test").source
    expected = []
    for task in (task for block in draw_fixed_tasks(source, row.tasks, row.seed, "test") for task in unstack(block)):
        support, query = (torch.stack([unit(x) for x in part.x.flatten(1)]) for part in task)
        means = torch.stack([support[task.support.y == k].mean(0) for k in range(row.ways)])
        nearest = torch.stack([((z - means) ** 2).sum(1).argmin() for z in query])
        expected.append((nearest == task.query.y).float().mean().item())
    with (place / "run/scores/test.csv").open(encoding="utf-8") as file:
        assert [float(line["accuracy"]) for line in csv.DictReader(file)] == pytest.approx(expected, abs=1e-6)

    again = metarun("evaluate", "run", "algo.name=logistic", "shots=2")
    assert again.code == 0, again.err
    skewed = metarun("evaluate", "run", "dirichlet=2", "queries=1")
    assert skewed.code == 0, skewed.err
    assert "5-way 1-shot, 5 queries of Dirichlet(2) shares" in skewed.out
    (place / "run/result.json").unlink()  # as if it was killed before its end
    assert metarun(*RAW, "backbone=raw", "hydra.run.dir=run").code == 0
    assert json.loads((place / "run/result.json").read_text(encoding="utf-8"))["test"] == {
        name: {**row, "seconds": pytest.approx(row["seconds"], abs=60)} for name, row in result["test"].items()
    }
