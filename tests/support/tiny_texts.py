"""Small copies of the text sets: every class of the published lists, with texts that name it."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.config.registry import build
from metarun.datasets import texts
from metarun.datasets.storage.known_sets import read_class_lists
from metarun.datasets.texts import Texts
from tests.support.shipped import read_settings

OUT_OF_SCOPE = "what is the airspeed of a swallow"


def text(label: str, number: int) -> str:
    return f"{label.replace('_', ' ')} no. {number}"


def write_texts(root: Path, name: str, per_class: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Texts 0 .. per_class - 1 of each class, the last in the files of its test split; a complete set from now on."""
    labels = [label for labels in read_class_lists(name).values() for label in labels]
    rows = {
        split: [[text(label, number), label] for label in labels for number in numbers]
        for split, numbers in (("train", range(per_class - 1)), ("test", [per_class - 1]))
    }
    root.mkdir(parents=True)
    if name == "clinc150":
        content = {**rows, "val": [], "oos_train": [[OUT_OF_SCOPE, "oos"]]}
        (root / "data_full.json").write_text(json.dumps(content))
    else:
        for split, found in rows.items():
            with (root / f"{split}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([["text", "category"], *found])
    corpus = texts.CORPORA[name]._replace(texts=per_class * len(labels))
    monkeypatch.setitem(texts.CORPORA, name, corpus)
    return root


def dataset(name: str, path: Path | None, **changes: Any) -> Texts:
    """The shipped configs/dataset/NAME.yaml."""
    values = read_settings("texts", name) | {"path": path and str(path), **changes}
    built = build("dataset", values, data_dir=Path("nowhere"), device=torch.device("cpu"))
    assert isinstance(built, Texts)
    return built
