"""Omniglot's tasks and splits on a tiny generated copy, and the real one where METARUN_DATA has it."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.datasets import omniglot
from metarun.datasets.omniglot import divide
from metarun.errors import ConfigError
from metarun.registry import declaration
from metarun.types import TaskShape
from tests.tiny_omniglot import SETTINGS, dataset, tiny_parts, write_zips


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(omniglot, "PARTS", tiny_parts())


@pytest.fixture
def root(tiny, tmp_path):
    write_zips(tmp_path / "data")
    return tmp_path / "data"


# Tasks


@pytest.mark.parametrize(("rotations", "rows", "variants"), [("none", 2, 1), ("classes", 8, 1), ("episode", 8, 4)])
def test_rotation_modes(root, rotations, rows, variants):
    data = dataset(root, rotations_train=rotations)
    sampler = data.tasks("train", TaskShape(2, 1, 1))
    assert (len(sampler.images), sampler.variants) == (rows, variants)
    assert len(data.tasks("test", TaskShape(2, 1, 1)).images) == 2  # the other setting
    for row in range(rows):
        turned = torch.rot90(sampler.images[row - row % 4], row % 4, (-2, -1))
        assert rows == 2 or torch.equal(sampler.images[row], turned)


def test_validation_rotates_as_the_test_does(root):
    data = dataset(root, rotations_train="classes", rotations_test="episode")
    assert [data.tasks(split, TaskShape(2, 1, 1)).variants for split in ("train", "val", "test")] == [1, 4, 4]


def test_an_episode_never_holds_two_rotations_of_a_character(root):
    sampler = dataset(root, rotations_train="episode").tasks("train", TaskShape(2, 1, 2))
    support = sampler.sample(64, torch.Generator().manual_seed(0)).support.x  # [T, 2, 1, S, S]
    table = sampler.images.float() / 255  # [8, 20, 1, S, S]
    same = (support[:, :, None, None] == table).flatten(4).all(-1).any(-1)  # [T, 2, 8]
    rows = same.float().argmax(-1)
    assert (same.sum(-1) == 1).all()
    assert (rows // 4).sort(-1).values.tolist() == [[0, 1]] * 64
    assert rows.unique().tolist() == list(range(8))
    with pytest.raises(ConfigError, match="ways is 3: this split has 2 classes"):
        dataset(root, rotations_train="episode").tasks("train", TaskShape(3, 1, 1))


def test_ink_is_one_or_zero_and_shares_the_packed_table(root, cache):
    shape = TaskShape(2, 1, 1)
    bright, dark = (dataset(root, ink=ink).tasks("train", shape).images for ink in (1, 0))
    assert torch.equal(bright, 255 - dark)
    assert bright[0, 0, 0, -1, -1] == 0  # paper
    assert bright.float().mean() < 128 < dark.float().mean()
    assert len(list(cache.rglob("images.npy"))) == 1


def test_identity_is_json_and_tells_two_uses_apart(root):
    one, other = dataset(root).identity(), dataset(root, filter="nearest").identity()
    assert json.loads(json.dumps(one)) == one
    assert one["characters"] == {"train": 2, "val": 2, "test": 2}
    assert one["sha256"] != other["sha256"]


def test_the_registry_knows_which_fields_yaml_sets():
    declared = declaration("dataset", "omniglot")
    assert set(declared.settings) == set(SETTINGS)
    assert declared.runtime == ("data_dir", "device")


# Splits

CHARACTERS = [f"images_background/A{n % 30:02}/character{n // 30:02}" for n in range(964)] + [
    f"images_evaluation/B{n % 20:02}/character{n // 20:02}" for n in range(659)
]


@pytest.mark.parametrize(("split", "sizes"), [("random", [1100, 100, 423]), ("lake", [864, 100, 659])])
def test_seeded_splits_are_disjoint_and_of_their_sizes(split, sizes):
    one, again, other = (divide(CHARACTERS, split, seed) for seed in (1, 1, 2))
    assert [len(rows) for rows in one.values()] == sizes
    assert sorted(row for rows in one.values() for row in rows) == list(range(1623))
    assert one == again
    assert one != other


def test_lake_tests_on_the_evaluation_alphabets():
    assert divide(CHARACTERS, "lake", 1)["test"] == list(range(964, 1623))


# The real thing

real = pytest.mark.skipif("METARUN_DATA" not in os.environ, reason="METARUN_DATA is not set")


@pytest.fixture(scope="module")
def omniglot_data(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(tmp_path_factory.mktemp("cache")))
        data = dataset(Path(os.environ["METARUN_DATA"]) / "omniglot")
        data.prepare()
        return data


@real
def test_the_whole_collection_is_packed(omniglot_data):
    images, index = omniglot_data._packed
    assert images.shape == (1623, 20, 1, 28, 28)
    assert (index["alphabets"], index["images"]) == (50, 32460)
    assert (images.flatten(2).float().mean(-1) > 128).all()  # mostly paper
    assert images.flatten(2).amin(-1).max() < 200  # ink in every one


@real
def test_one_known_image_equals_an_independent_decoding(omniglot_data):
    images, index = omniglot_data._packed
    root, character = Path(omniglot_data.path), "images_evaluation/Tibetan/character07"
    with zipfile.ZipFile(root / "omniglot-py" / "images_evaluation.zip") as archive:
        name = next(n for n in archive.namelist() if n.startswith(character) and n.endswith("_13.png"))
        pixels = np.asarray(Image.open(archive.open(name)), dtype=np.uint8) * 255
    expected = np.asarray(Image.fromarray(pixels).resize((28, 28), Image.Resampling.LANCZOS))
    assert (images[index["characters"].index(character), 12, 0].numpy() == expected).all()


@real
def test_vinyals_equals_the_published_lists(omniglot_data):
    characters = omniglot_data._packed[1]["characters"]
    for split, rows in divide(characters, "vinyals", 0).items():
        lines = (Path(omniglot_data.path) / "splits" / "vinyals" / f"{split}.txt").read_text().split()
        assert {characters[row].split("/", 1)[1] for row in rows} == {line.rsplit("/", 1)[0] for line in lines}
        assert 4 * len(rows) == len(lines)


@real
def test_nearest_is_what_pillow_makes_of_the_1_bit_image(tmp_path):
    """MAML's code asks for LANCZOS on the 1-bit files; Pillow then takes the nearest pixel all the same."""
    path = Path(os.environ["METARUN_DATA"]) / "omniglot" / "omniglot-py" / "images_background.zip"
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".png"))
        raw = Image.open(archive.open(name))
        theirs = np.asarray(raw.resize((28, 28), Image.Resampling.LANCZOS).convert("L"))
        ours = omniglot._grey(path, name, archive.read, 28, "nearest")
    assert (ours == theirs).all()
