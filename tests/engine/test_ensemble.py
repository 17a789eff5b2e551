"""Checkpoints tested together: which are kept, and what their common answer is."""

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from metarun.config.load import load_settings
from metarun.core.batch import unstack
from metarun.core.norm import use_statistics
from metarun.core.types import Episode, Examples, FewShotAlgorithm, TaskSpec
from metarun.engine import checkpoint
from metarun.engine.build import Experiment
from metarun.engine.ensemble import Ensemble
from metarun.engine.evaluate import draw_fixed_tasks
from metarun.engine.state import Progress
from metarun.runs.folder import RunFolder
from tests.conftest import TINY, Command

KEPT = (*TINY, "trainer.steps=10", "trainer.keep_best=3", "eval.checkpoint=ensemble", "hydra.run.dir=run")


class Certain:
    """Answers every query by the same logits, which are its theta."""

    norm = "batch"

    def adapt(self, theta: torch.Tensor, support: Examples) -> None:
        return None

    def predict(self, theta: torch.Tensor, phi: None, x: torch.Tensor) -> torch.Tensor:
        return theta.expand(len(x), -1)


def test_probabilities_are_averaged_and_not_logits() -> None:
    """Softmax gives (1/4, 3/4), (1/4, 3/4) and (99/100, 1/100): the mean is (149/300, 151/300), class 1. The mean
    logit of class 0 over class 1 is (2 ln 1/3 + ln 99) / 3 > 0, class 0."""
    logits = [torch.tensor([math.log(p), math.log(1 - p)], dtype=torch.float64) for p in (0.25, 0.25, 0.99)]
    examples = Examples(torch.zeros(2, 1), torch.tensor([0, 1]))
    ensemble = Ensemble(
        [(cast(Any, Certain()), cast(Any, theta)) for theta in logits], TaskSpec("classification", (1,), 2)
    )
    task = Episode(examples, examples)
    expected = torch.tensor([[149 / 300, 151 / 300]] * 2, dtype=torch.float64)
    torch.testing.assert_close(ensemble.probabilities(task), expected)
    assert ensemble.task_metrics({}, task)["accuracy"] == 0.5
    assert torch.stack(logits).mean(0).argmax() == 0


def test_of_equal_scores_the_earlier_stays_also_after_a_restart() -> None:
    progress, kept = Progress(), []
    for step, score in enumerate([0.5, 0.7, 0.6, 0.6, 0.8, 0.1]):
        progress = Progress(**json.loads(json.dumps(asdict(progress))))  # as a checkpoint holds it
        progress.step = step
        kept.append(progress.rank(score, places=3))
    assert kept == [["best", "best-0"], ["best", "best-1"], ["best-2"], ["best-3"], ["best", "best-4"], []]
    assert progress.leaders == [[0.8, 4], [0.7, 1], [0.6, 2]]


@pytest.fixture
def result(metarun: Command, place: Path) -> dict[str, Any]:
    answer = metarun(*KEPT, "algo=protonet")
    assert answer.code == 0, answer.err
    assert "inductive, ensemble of 3" in (place / "run/train.log").read_text()
    result: dict[str, Any] = json.loads((place / "run/result.json").read_text())
    return result


def test_the_best_validations_are_kept_and_tested_as_one(result: dict[str, Any], metarun: Command, place: Path) -> None:
    rows = [json.loads(line) for line in (place / "run/metrics.jsonl").read_text().splitlines()]
    found = [(row["accuracy"], row["step"]) for row in rows if row["split"] == "val"]
    best = sorted(step for _, step in sorted(found, key=lambda entry: -entry[0])[:3])
    files = {path.name for path in (place / "run/checkpoints").iterdir()}
    assert files == {"last.pt", "best.pt", *(f"best-{step}.pt" for step in best)}
    assert (result["checkpoint"], result["validation"]["best"]) == ({"name": "ensemble", "step": best}, max(found)[0])
    assert result["test"]["test"]["ensemble"] == 3

    settings = load_settings(RunFolder(place / "run").config())
    experiment = Experiment.build(settings)
    tester = experiment.build_tester(experiment.plan_rows()["test"], "test")
    algo = cast(FewShotAlgorithm, tester.algo)
    tasks = [
        task for block in draw_fixed_tasks(tester.source, 20, settings.eval.seed, "test") for task in unstack(block)
    ]
    probabilities = torch.zeros(())
    for step in best:  # each with its own weights and running statistics
        tensors = checkpoint.load(place / f"run/checkpoints/best-{step}.pt")[0]
        theta = tensors["theta"]
        use_statistics(tester.backbone, tensors["statistics"])
        with torch.no_grad():
            answers = [algo.predict(theta, algo.adapt(theta, task[0]), task[1].x) for task in tasks]
        probabilities = probabilities + torch.stack(answers).softmax(-1)
    right = probabilities.argmax(-1) == torch.stack([task.query.y for task in tasks])
    assert result["test"]["test"]["accuracy"]["mean"] == pytest.approx(right.double().mean().item(), abs=1e-7)

    assert metarun("evaluate", "run", f"checkpoint=best-{best[0]}").code == 0
    single = json.loads((place / f"run/tests/checkpoint=best-{best[0]}/result.json").read_text())
    assert single["checkpoint"]["step"] == best[0]
    assert "ensemble" not in single["test"]["test"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["trainer.keep_best=1"], "trainer.keep_best is 1, and must be at least 2 in training"),
        (["dataset=sinusoid"], "it averages class probabilities, and this is regression"),
    ],
)
def test_where_there_can_be_none(metarun: Command, place: Path, changes: list[str], message: str) -> None:
    own = [text for text in KEPT if not text.startswith(("dataset", "backbone"))]
    answer = metarun(*own, *changes)
    assert (answer.code, answer.err) == (2, f"metarun: eval.checkpoint is ensemble: {message}\n")
    assert list(place.iterdir()) == []


@pytest.mark.integration
def test_several_processes_test_it_together(metarun_process: Command, place: Path) -> None:
    done = metarun_process(*KEPT, "trainer.tasks_per_step=4", "trainer.workers=2")
    assert done.code == 0, done.err
    found = json.loads((place / "run/result.json").read_text())
    assert found["training"]["workers"] == 2
    assert (found["test"]["test"]["ensemble"], found["test"]["test"]["tasks"]) == (3, 20)
