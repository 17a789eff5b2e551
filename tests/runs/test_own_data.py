"""A run on a person's own tables ends with a result, and its model answers for files as for what they hold."""

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import metarun
from metarun.runs.artifacts import describe_result
from metarun.runs.prediction import Classifier, Regressor
from tests.support.tiny_tables import write_assays, write_csv, write_own

SMALL = (
    "trainer.steps=2", "trainer.tasks_per_step=2", "trainer.workers=1", "eval.tasks=4", "eval.val_tasks=2", "ways=2",
    "shots=3", "queries=2", "device=cpu",
)  # fmt: skip
NGRAMS = ("backbone.buckets=64", "backbone.features=4", "dataset.width=20")
SETTINGS = {
    "texts": ("algo=protonet", *NGRAMS),
    "assays": ("algo=protonet", *NGRAMS),
    "continuous": ("algo=maml", "algo.inner_lr=0.01", "dataset.values=continuous", *NGRAMS),
    "regression": ("algo=maml", "algo.inner_lr=0.01"),
    "features": ("algo=protonet",),
}


def train(kind: str, place: Path) -> metarun.Model:
    name = "assays" if kind == "continuous" else kind
    own = write_assays(place / "own.csv", continuous=True) if kind == "continuous" else write_own(name, place)
    words = (f"dataset={name}", f"dataset.path={own}", *SETTINGS[kind], *SMALL, f"hydra.run.dir={place}/run")
    done = metarun.run(*words)
    told = " ".join(describe_result(done.result))
    assert ("source task" in told) == (done.result.kind == "regression")
    assert done.result.notes[0] == f"split: drawn by dataset.split_seed, {own.name} says none"
    assert done.result.headline == {"assays": "delta_auprc", "continuous": "mse", "regression": "mse"}.get(
        kind, "accuracy"
    )
    return done.load(device="cpu")


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["texts", "assays"])
def test_a_model_of_strings_answers_for_a_table_as_for_its_strings(kind: str, tmp_path: Path, place: Path) -> None:
    model = train(kind, place)
    strings, labels = ["CCO", "CCN", "c1ccccc1", "OCC"], ["1", "0", "0", "1"]
    header = ("text", "label") if kind == "texts" else ("SMILES", "active")
    support = write_csv(tmp_path / "support.csv", [header, *zip(strings, labels)])
    query = write_csv(tmp_path / "query.csv", [header[:1], ["OCCN"], ["CC"]])
    by_file, by_hand = model.adapt(support), model.adapt({"0": strings[1:3], "1": [strings[0], strings[3]]})
    assert isinstance(by_file, Classifier)
    assert isinstance(by_hand, Classifier)
    assert by_file.predict(query).names == ["OCCN", "CC"]
    torch.testing.assert_close(by_file.predict(query).logits, by_hand.predict(["OCCN", "CC"]).logits)


@pytest.mark.integration
@pytest.mark.parametrize("kind", ["continuous", "regression"])
def test_a_model_of_values_answers_for_a_table_as_for_its_numbers(kind: str, tmp_path: Path, place: Path) -> None:
    model = train(kind, place)
    inputs: Any = ["CCO", "CCN", "OCC"] if kind == "continuous" else [0.5, -1.0, 2.0]
    header = ("smiles", "value") if kind == "continuous" else ("x", "y")
    values = [1.5, -2.0, 0.25]
    support = write_csv(tmp_path / "support.csv", [header, *zip(inputs, values)])
    by_file = model.adapt(support)
    by_hand = model.adapt((inputs if kind == "continuous" else np.array(inputs)[:, None], values))
    assert isinstance(by_file, Regressor)
    assert isinstance(by_hand, Regressor)
    expected = by_hand.predict(inputs if kind == "continuous" else np.array(inputs)[:, None])
    assert expected.shape == (3, 1)
    torch.testing.assert_close(by_file.predict(support), expected)


@pytest.mark.integration
def test_a_model_of_features_answers_for_files_as_for_arrays(tmp_path: Path, place: Path, metarun: Any) -> None:
    model = train("features", place)
    features = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    labels = np.array(["b", "a", "b", "a", "a", "b"])
    np.savez(tmp_path / "support.npz", embeddings=features, labels=labels)
    np.savez(tmp_path / "query.npz", embeddings=features[:2], files=np.array(["one", "two"]))
    words = ("predict", f"{place}/run", f"{tmp_path}/support.npz", f"{tmp_path}/query.npz", "--device=cpu")
    assert metarun(*words, f"--to={tmp_path}/out.csv").code == 0
    rows = list(csv.DictReader((tmp_path / "out.csv").read_text().splitlines()))
    by_hand = model.adapt((features, labels))
    assert isinstance(by_hand, Classifier)
    found = [[float(row[f"p_{name}"]) for name in "ab"] for row in rows]
    assert [row["file"] for row in rows] == ["one", "two"]
    np.testing.assert_allclose(found, by_hand.predict(features[:2]).probabilities, atol=6e-5)
    assert metarun("embed", f"{place}/run", f"{tmp_path}/query.npz", f"--to={tmp_path}/e.npz", "--device=cpu").code == 0
    assert np.load(tmp_path / "e.npz")["embeddings"].shape == (2, 6)
