"""What scores are worth: measured in the test itself, and again in every later one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.algos.protonet import ProtoNet
from metarun.cli.compose import compose
from metarun.config.load import load_settings, resolve
from metarun.engine.build import Experiment
from metarun.engine.distributed import ALONE
from metarun.engine.evaluate import Model
from metarun.engine.plan import Plan
from metarun.runs.scoring import measure_doubt, score_models
from tests.conftest import TINY, Command


@pytest.mark.parametrize("norm", ["running", "batch"])
def test_sets_of_answers_need_no_second_adaptation(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of the test, whose inductive row is measured with it, of the untrained row, of validation, and with
    unknown classes: each is adapted to once.
    """
    small = ["algo=protonet", f"algo.norm={norm}", "dataset.image_size=8", "backbone.filters=2", "eval.tasks=12"]
    experiment = Experiment.build(load_settings(resolve(compose([*TINY, *small]))))
    theta, adapt, adapted = experiment.draw_theta(), ProtoNet.adapt, list[int]()
    models = [Model(theta, experiment.measure_statistics(theta))]

    def count(self: ProtoNet, *given: Any) -> Any:
        adapted.append(len(given[1].y))
        return adapt(self, *given)

    monkeypatch.setattr(ProtoNet, "adapt", count)
    with torch.no_grad():
        rows, doubt = score_models(experiment, models, Plan("loop", None), None, ALONE)
        assert len(adapted) == 12 + 12 + 10 + 10
        assert ("test_inductive" in rows) == (norm == "batch")
        assert doubt.sets is not None
        assert doubt == measure_doubt(experiment, models, Plan("loop", None), ALONE, None)  # bit for bit


@pytest.mark.integration
def test_a_later_test_measures_sets_and_unknown_classes_again(metarun: Command, place: Path) -> None:
    small = ("algo=protonet", "dataset.image_size=8", "backbone.filters=2", "hydra.run.dir=run")
    assert metarun(*TINY, *small).code == 0
    answer = metarun("evaluate", "run", "ways=3", "queries=4")
    assert answer.code == 0, answer.err
    own, later = (json.loads(next(place.glob(f"run/{part}result.json")).read_text()) for part in ("", "tests/*/"))
    assert later["sets"]["threshold"] != own["sets"]["threshold"]
    assert (own["unknown"]["classes"], later["unknown"]["classes"]) == (5, 3)
    assert "sets of answers " in answer.out
    assert f"unknown classes      AUROC {later['unknown']['auroc']:.4f}" in answer.out

    answer = metarun("evaluate", "run", "ways=12", "split=train")  # more than there are validation classes
    assert answer.code == 0, answer.err
    assert "no sets of answers: " in answer.out + answer.err
