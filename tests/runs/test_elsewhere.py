"""A trained model on another dataset, on other splits, and beside its own untrained weights."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from metarun.core.objectives import measure_test
from metarun.core.types import TaskSpec
from metarun.runs.folder import RunFolder
from metarun.runs.model import load
from metarun.runs.prediction import Prediction
from tests.conftest import Command
from tests.runs.test_identity import write_pictures

GLYPHS = ("dataset.image_size=8", "dataset.classes_train=8", "dataset.classes_val=4", "dataset.classes_test=5")
RUN = (
    "algo=protonet", "backbone=conv4_strided", "backbone.filters=2", "dataset=glyphs", *GLYPHS, "ways=2", "queries=3",
    "trainer.steps=20", "trainer.eval_every=20", "trainer.log_every=20", "trainer.workers=1", "eval.tasks=60",
    "eval.val_tasks=40", "device=cpu", "hydra.run.dir=run",
)  # fmt: skip

pytestmark = pytest.mark.integration


def read(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "result.json").read_text()))


@pytest.fixture
def run(metarun: Command, place: Path) -> Path:
    assert metarun(*RUN).code == 0
    return place / "run"


def test_other_pictures_are_resized_as_the_runs_were(metarun: Command, run: Path, place: Path) -> None:
    write_pictures(place / "pics")  # colour, 16 pixels a side; the network reads grey ones of 8
    assert (
        metarun("evaluate", "run", "dataset=folder", "dataset.path=pics", "split=all", "tasks=20", "queries=1").code
        == 0
    )
    result = read(next((run / "tests").iterdir()))
    row = result["test"]["test"]
    assert (row["split"], row["tasks"]) == ("all", 20)
    assert 9 < row["classes"] <= 15  # of all 15; train alone has 9
    assert row["data"]["form"]["size"] == 8 if "form" in row["data"] else row["data"]["image_size"] == 8
    assert result["dataset"]["name"] == "glyphs"  # what the model was trained on


def test_tests_on_several_tables_are_beside_each_other_with_their_own_notes(metarun: Command, place: Path) -> None:
    """Though the run's own data have a path, and all three are called from several folders by one name."""
    tables = {"own": 2, "other": 3, "third": 4}  # equal texts of a class
    for name, copies in tables.items():
        (place / name).mkdir()
        rows = [f"word{c} of {min(i, 12 - copies)},class{c}" for c in range(10) for i in range(12)]
        (place / name / "t.csv").write_text("text,label\n" + "\n".join(rows))
    words = ("algo=protonet", "backbone.buckets=64", "backbone.features=4", "dataset=texts", "dataset.path=own/t.csv")
    brief = ("ways=2", "trainer.steps=1", "trainer.workers=1", "eval.tasks=4", "eval.val_tasks=4", "device=cpu")
    assert metarun(*words, *brief, "experiment=null", "hydra.run.dir=run").code == 0
    for name in ("other", "third"):
        assert metarun("evaluate", "run", "dataset=texts", f"dataset.path={name}/t.csv", "tasks=4").code == 0
    found = {
        Path(row["test"]["test"]["dataset"]["path"]).parent.name: row["notes"] for row in read_tests(place / "run")
    }
    assert set(found) == {"other", "third"}
    assert found["other"] != found["third"]


def read_tests(run: Path) -> list[dict[str, Any]]:
    return [read(folder) for folder in (run / "tests").iterdir()]


def test_what_the_network_cannot_read_is_refused(metarun: Command, run: Path, place: Path) -> None:
    write_pictures(place / "pics")
    for words, text in (
        (("dataset=sinusoid",), "eval.dataset is sinusoid: its tasks are regression"),
        (("dataset=folder", "dataset.path=pics", "dataset.image_size=9"), "[3, 9, 9], this model was trained for"),
        (("split=valid",), "eval.split is 'valid'"),
        (("dataset=sinusoid", "split=all"), "eval.split is all: dataset=sinusoid has no such split"),
    ):
        if "dataset.image_size=9" in words:
            words = (*words, "dataset.channels=3")
        outcome = metarun("evaluate", "run", *words)
        assert outcome.code == 2
        assert text in outcome.err


def test_another_split_of_the_own_data_is_another_test(metarun: Command, run: Path) -> None:
    assert metarun("evaluate", "run", "split=train").code == 0
    row = read(run / "tests" / "split=train")["test"]["test"]
    assert (row["split"], row["classes"], row["data"]) == ("train", 8, None)


def test_a_row_of_a_run_can_be_on_another_dataset(metarun: Command, place: Path) -> None:
    write_pictures(place / "pics")
    own = ("dataset.path=pics", "dataset.image_size=8", "dataset.channels=1", "dataset.small_classes=refuse")
    beside = [f"eval.variants.photos.{text}" for text in own]
    words = (*RUN, "+dataset@eval.variants.photos.dataset=folder", *beside, "eval.variants.photos.queries=1")
    assert metarun(*words).code == 0
    rows = read(place / "run")["test"]
    assert rows["photos"]["data"]["collection" if "collection" in rows["photos"]["data"] else "name"] == "folder"
    assert rows["test"]["data"] is None


def test_the_untrained_row_is_of_the_initial_weights_on_the_first_tasks(run: Path) -> None:
    result, folder = read(run)["test"], RunFolder(run)
    assert result["untrained"]["tasks"] == 60
    assert result["untrained"]["task_hash"] == result["test"]["task_hash"]
    untrained, trained = (folder.read_scores(row, "accuracy") for row in ("untrained", "test"))
    assert untrained is not None
    assert trained is not None
    assert not np.array_equal(untrained, trained)
    assert result["test"]["at_chance"] == pytest.approx((trained <= 0.5 + 1e-6).mean())


def test_the_table_of_classes_agrees_with_the_scores(run: Path) -> None:
    """The mean accuracy over tasks is that over classes, each as often as it was asked: all tasks have as many."""
    with (run / "scores" / "test_classes.csv").open(newline="") as lines:
        table = list(csv.DictReader(lines))
    asked = [int(line["queries"]) for line in table]
    mean = sum(n * float(line["accuracy"]) for n, line in zip(asked, table)) / sum(asked)
    scores = RunFolder(run).read_scores("test", "accuracy")
    assert scores is not None
    assert mean == pytest.approx(scores.mean())
    assert sum(asked) == 60 * 2 * 3


def test_predictions_have_the_temperature_of_the_runs_own_checkpoint_alone(run: Path) -> None:
    temperature = read(run)["temperature"]
    assert load(run).temperature == load(run / "checkpoints" / "best.pt").temperature == temperature is not None
    assert load(run, checkpoint="last").temperature is None
    x = torch.rand(4, 1, 8, 8)
    prediction = load(run).adapt((x, [0, 0, 1, 1])).predict(x)
    assert isinstance(prediction, Prediction)
    torch.testing.assert_close(prediction.probabilities, (prediction.logits / temperature).softmax(-1))
    sets, threshold = read(run)["sets"], load(run).threshold
    assert (sets["threshold"], read(run)["unknown"]["tasks"]) == (threshold, sets["tasks"])
    assert prediction.sets is not None
    for held, row in zip(prediction.sets, prediction.probabilities.tolist()):
        assert set(held) == {name for name, p in zip((0, 1), row) if p >= min(threshold, max(row))}
    assert load(run, checkpoint="last").threshold is None


def test_answers_are_counted_where_tasks_share_classes_alone() -> None:
    logits, y = torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 1.0]]), torch.tensor([0, 0, 1])
    spec = TaskSpec("classification", (1,), 2)
    assert measure_test(spec, logits, y)["answers"].tolist() == [[1, 1], [1, 0]]
    for other in (spec._replace(metric="delta_auprc"), TaskSpec("regression", (1,), 2)):
        assert "answers" not in measure_test(other, logits, y if other.kind == "classification" else logits)
