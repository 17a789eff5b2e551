"""Assays as tasks: small generated ones, and the real FS-Mol where METARUN_DATA has it."""

import gzip
import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.config.errors import ConfigError
from metarun.core.seeding import generator_for
from metarun.core.types import Split, TaskShape
from metarun.datasets.storage.ngrams import Bag
from tests.cli.test_errors import assert_told
from tests.conftest import Command
from tests.support.tiny_assays import ASSAYS, dataset, files, molecule, write_assays

WIDTH = 60


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_assays(tmp_path / "assays")
    return tmp_path / "assays"


def owners(split: str) -> dict[tuple[int, ...], tuple[str, bool]]:
    """Of every row the assay that its molecule is of, and whether it is active there."""
    found: dict[tuple[int, ...], tuple[str, bool]] = {}
    for (folder, name), (active, inactive) in ASSAYS.items():
        if folder == split:
            numbers = range(active + inactive)
            rows = Bag([2, 3], False, WIDTH).encode([molecule(name, number) for number in numbers], name)
            found |= {tuple(row): (name, number < active) for number, row in zip(numbers, rows.tolist())}
    return found


@pytest.mark.parametrize(("folder", "split"), [("train", "train"), ("valid", "val"), ("test", "test")])
def test_a_task_is_one_assay_in_its_own_balance(folder: str, split: Split, root: Path) -> None:
    """Of 4 molecules an assay of 3 active ones in 12 gives 1, of 11 in 12 gives 3, for it must give both kinds."""
    owner = owners(folder)
    sampler = dataset(root, width=WIDTH).tasks(split, TaskShape(2, 4, 8))
    support, query = sampler.sample(60, generator_for("assays"))
    assert (sampler.spec.input_shape, sampler.spec.output_size) == ((WIDTH,), 2)
    drawn, numbers = set(), sampler.draw_classes(60, generator_for("assays"))
    order = [name for place, name in sorted(ASSAYS) if place == folder]
    for sx, sy, qx, qy, number in zip(support.x, support.y, query.x, query.y, numbers[:, 0].tolist()):
        rows = [tuple(row) for row in torch.cat([sx, qx]).tolist()]
        assert [int(owner[row][1]) for row in rows] == [*sy.tolist(), *qy.tolist()]
        assert len(set(rows)) == 12  # no molecule twice
        (name,) = {owner[row][0] for row in rows}
        assert name == order[number]
        active, inactive = ASSAYS[folder, name]
        assert int(sy.sum()) == min(3, max(1, round(4 * active / (active + inactive))))
        drawn.add(name)
    assert drawn == {name for where, name in ASSAYS if where == folder}


def test_every_molecule_of_a_large_assay_is_drawn_and_none_preferred(root: Path) -> None:
    """Of 15 active and 15 inactive molecules 2 + 2 are support, 8 of the other 26 queries."""
    owner = owners("valid")
    support, query = dataset(root, width=WIDTH).tasks("val", TaskShape(2, 4, 8)).sample(6000, generator_for("fair"))
    for part, share in ((support, 4 / 30), (query, 8 / 30)):
        rows = [tuple(row) for row in part.x.flatten(0, 1).tolist()]
        counts = torch.tensor([float(sum(row == known for row in rows)) for known in owner]) / 6000
        assert counts.tolist() == pytest.approx([share] * 30, abs=0.035)  # six standard deviations


def test_every_form_holds_the_same(root: Path, tmp_path: Path) -> None:
    zipped, archive = tmp_path / "zipped", tmp_path / "deep" / "fs-mol-lite.tar.xz"
    for name, content in files().items():
        (zipped / name).parent.mkdir(parents=True, exist_ok=True)
        (zipped / f"{name}.gz").write_bytes(gzip.compress(content))
    archive.parent.mkdir()
    with tarfile.open(archive, "w:xz") as tar:
        for name, content in files().items():
            info = tarfile.TarInfo(f"fs-mol/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    found = [dataset(path).identity() for path in (root, zipped, archive, archive.parent)]
    assert found == [found[0]] * 4
    assert json.loads(json.dumps(found[0])) == found[0]
    assert found[0]["assays"] == {"train": 3, "val": 1, "test": 1}
    assert dataset(root, characters=[3]).identity()["sha256"] != found[0]["sha256"]
    assert "train: 3 assays of 12 to 20 molecules, 44 in all" in dataset(root).describe()


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        (TaskShape(2, 1, 4), "shots is 1: of an assay it counts all molecules of the support, at least 2"),
        (
            TaskShape(2, 6, 7),
            "shots + queries is 6 + 7 = 13: 2 of the 3 assays of train have fewer molecules, CHEMBL1 only 12: "
            "ask for fewer, or set dataset.small_classes=skip",
        ),
    ],
)
def test_a_shape_that_an_assay_cannot_have_is_refused(shape: TaskShape, told: str, root: Path) -> None:
    with pytest.raises(ConfigError) as error:
        dataset(root).tasks("train", shape)
    assert str(error.value) == told


def broken(**changes: Any) -> bytes:
    return json.dumps({"SMILES": "CC", "Property": "1.0", **changes}).encode()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b'{"SMILES"', r"train/CHEMBL1.jsonl in .* is damaged"),
        (broken(Property="active"), r"train/CHEMBL1.jsonl in .* is damaged"),
        (broken(), r"/assays: 1 assay without both active and inactive molecules, for example CHEMBL1: leave them out"),
    ],
)
def test_a_damaged_assay_is_named(content: bytes, told: str, root: Path) -> None:
    (root / "train/CHEMBL1.jsonl").write_bytes(content)
    with pytest.raises(ConfigError, match=told):
        dataset(root).prepare()


def test_what_is_missing_is_told(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing at .*/nowhere: put the folders train, valid and test of https"):
        dataset(tmp_path / "nowhere").prepare()
    assert dataset(tmp_path / "nowhere").describe().startswith("nothing at")
    (root / "test/CHEMBL5.jsonl").unlink()
    with pytest.raises(ConfigError, match="has no assays in test"):
        dataset(root).prepare()


def test_a_classifier_of_all_training_classes_is_refused(root: Path, metarun: Command) -> None:
    asked = ("dataset=fs_mol", f"dataset.path={root}", "shots=4", "queries=4", "algo=baseline", "device=cpu")
    told = "algo=baseline learns to tell all training classes apart: the tasks of dataset=fs_mol have none in common"
    assert_told(metarun(*asked), told)


@pytest.mark.skipif("METARUN_DATA" not in os.environ, reason="METARUN_DATA is not set")
def test_the_test_split_of_the_real_set_is_whole() -> None:
    """Packing all of it takes half a minute: the archive's names tell."""
    data = dataset(None, data_dir=Path(os.environ["METARUN_DATA"]))
    if data.describe().startswith("nothing at"):
        pytest.skip("fs-mol-lite is not in METARUN_DATA")
    found = data.find_files()
    assert sum(match[1] == "test" for match in found.values()) == 157
    assert sum(match[1] == "train" for match in found.values()) >= 4935
