"""A method without weights, such as class means of fixed features, is tested as it is."""

import json
from pathlib import Path

import pytest
import torch

from metarun.config.load import load_settings
from metarun.core.batch import unstack
from metarun.engine.build import Experiment
from metarun.engine.evaluate import draw_fixed_tasks
from metarun.runs.folder import RunFolder
from tests.conftest import TINY, Command


@pytest.mark.integration
def test_a_run_with_nothing_to_learn_is_validated_and_tested_without_a_step(metarun: Command, place: Path) -> None:
    settings = [text for text in TINY if not text.startswith("backbone.")]
    answer = metarun("algo=protonet", "backbone=raw", "eval.shots=2", "hydra.run.dir=run", *settings)
    assert (answer.code, answer.err) == (0, "")
    assert "0 weights" in answer.out
    assert "nothing to train" in answer.out
    folder = RunFolder(place / "run")
    result = folder.result()
    assert result is not None
    assert (result.training.steps, result.checkpoint.step) == (0, 0)
    assert [json.loads(line)["step"] for line in (place / "run/metrics.jsonl").read_text().splitlines()] == [0]
    experiment = Experiment.build(load_settings(folder.config()))
    source = experiment.build_tester(experiment.plan_rows()["test"], "test").source
    support, query = unstack(next(draw_fixed_tasks(source, 20, 0, "test")))[0]
    scores = folder.read_scores("test", "accuracy")
    assert scores is not None
    means = torch.stack([support.x[support.y == k].flatten(1).mean(0) for k in range(5)])
    nearest = torch.cdist(query.x.flatten(1).double(), means.double()).argmin(1)
    assert scores[0] == pytest.approx(float((nearest == query.y).double().mean()), abs=1e-6)
    assert "untrained" not in result.rows  # it would be the same
    pixels = folder.read_scores("pixels", "accuracy")
    assert pixels is not None
    assert pixels.tolist() == scores.tolist()
    assert result.rows["pixels"].task_hash == result.rows["test"].task_hash
    assert "pixels               accuracy" in answer.out
    assert metarun("resume", "run").code == 0
