"""Small own data of every kind: texts, molecules, tasks of regression and features."""

import csv
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from metarun.config.registry import build
from metarun.datasets.grouped import Grouped
from tests.support.shipped import read_settings

CLASSES, PER_CLASS = 30, 12


def write_csv(file: Path, rows: Iterable[Iterable[Any]]) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as text:
        csv.writer(text).writerows(rows)
    return file


def write_texts(file: Path) -> Path:
    rows = [(f"word{label} number {i}", f"class{label}") for label in range(CLASSES) for i in range(PER_CLASS)]
    return write_csv(file, [("text", "label"), *rows])


def write_assays(file: Path, molecules: int = 60, continuous: bool = False) -> Path:
    """Ten assays; of assay a, molecule i is active if a + i is even, and not measured if it is a multiple of 11."""

    def measure(assay: int, molecule: int) -> float | str:
        value = (assay + molecule) / 7 if continuous else (assay + molecule + 1) % 2
        return "" if (assay + molecule) % 11 == 0 else value

    rows = [(f"C{'N' * (i % 7)}O{i}", *(measure(a, i) for a in range(10))) for i in range(molecules)]
    return write_csv(file, [("smiles", *(f"assay{a}" for a in range(10))), *rows])


def write_points(file: Path) -> Path:
    """Of task t the line y = t x."""
    rows = [(f"t{task}", i / 10, task * i / 10) for task in range(10) for i in range(PER_CLASS)]
    return write_csv(file, [("task", "x", "y"), *rows])


def make_features(size: int = 6) -> dict[str, Any]:
    """Of class c, example i is the vector c, i, c, i, ..."""
    labels = np.arange(CLASSES).repeat(PER_CLASS)
    numbers = np.tile(np.arange(PER_CLASS), CLASSES)
    features = np.stack([labels, numbers] * (size // 2), 1).astype(np.float32)
    return {"embeddings": features, "labels": np.array([f"class{label}" for label in labels])}


def write_features(file: Path, **arrays: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.savez(file, **(make_features() | arrays))
    return file


def write_own(name: str, root: Path) -> Path:
    """A file of the kind that `dataset=NAME` reads."""
    writers = {"texts": write_texts, "assays": write_assays, "regression": write_points, "features": write_features}
    return writers[name](root / ("own.npz" if name == "features" else "own.csv"))


def dataset(name: str, path: Path | None, **changes: Any) -> Grouped:
    """The shipped configs/dataset/NAME.yaml."""
    values = read_settings(name) | {"path": path and str(path), **changes}
    built = build("dataset", values, data_dir=Path("nowhere"), device=torch.device("cpu"))
    assert isinstance(built, Grouped)
    return built
