"""Omniglot's tasks and splits on a tiny generated copy, and the real one where METARUN_DATA has it."""

import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.config.errors import ConfigError
from metarun.config.registry import declaration
from metarun.core.types import Split, TaskShape
from metarun.datasets import omniglot, omniglot_runs
from metarun.datasets.omniglot import Omniglot, divide
from metarun.datasets.omniglot_files import read_image
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.storage.tree import SPLITS
from tests.support.tiny_omniglot import SETTINGS, dataset


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Tasks


def sampler_of(data: Omniglot, split: Split, ways: int = 2, queries: int = 1) -> EpisodeSampler:
    sampler = data.tasks(split, TaskShape(ways, 1, queries))
    assert isinstance(sampler, EpisodeSampler)
    return sampler


def images_of(sampler: EpisodeSampler) -> torch.Tensor:
    """[classes, 20, 1, S, S]."""
    return sampler.table.examples.view(len(sampler.table), 20, *sampler.table.example_shape)


@pytest.mark.parametrize(("rotations", "rows", "variants"), [("none", 2, 1), ("classes", 8, 1), ("episode", 8, 4)])
def test_rotation_modes(root: Path, rotations: str, rows: int, variants: int) -> None:
    data = dataset(root, rotations_train=rotations)
    sampler = sampler_of(data, "train")
    assert (len(sampler.table), sampler.variants) == (rows, variants)
    assert len(sampler_of(data, "test").table) == 2  # the other setting
    images = images_of(sampler)
    for row in range(rows):
        turned = torch.rot90(images[row - row % 4], row % 4, (-2, -1))
        assert rows == 2 or torch.equal(images[row], turned)


def test_validation_rotates_as_the_test_does(root: Path) -> None:
    data = dataset(root, rotations_train="classes", rotations_test="episode")
    assert [sampler_of(data, split).variants for split in SPLITS] == [1, 4, 4]


def test_an_episode_never_holds_two_rotations_of_a_character(root: Path) -> None:
    sampler = sampler_of(dataset(root, rotations_train="episode"), "train", queries=2)
    support = sampler.sample(64, torch.Generator().manual_seed(0)).support.x  # [T, 2, 1, S, S]
    table = images_of(sampler).float() / 255  # [8, 20, 1, S, S]
    same = (support[:, :, None, None] == table).flatten(4).all(-1).any(-1)  # [T, 2, 8]
    rows = same.float().argmax(-1)
    assert (same.sum(-1) == 1).all()
    assert (rows // 4).sort(-1).values.tolist() == [[0, 1]] * 64
    assert rows.unique().tolist() == list(range(8))
    with pytest.raises(ConfigError, match=r"ways is 3: (train|val|test) has 2 classes"):
        dataset(root, rotations_train="episode").tasks("train", TaskShape(3, 1, 1))


def test_ink_is_one_or_zero_and_shares_the_packed_table(root: Path, cache: Path) -> None:
    bright, dark = (images_of(sampler_of(dataset(root, ink=ink), "train")) for ink in (1, 0))
    assert torch.equal(bright, 255 - dark)
    assert bright[0, 0, 0, -1, -1] == 0  # paper
    assert bright.float().mean() < 128 < dark.float().mean()
    assert len(list(cache.rglob("images.npy"))) == 1


def test_identity_is_json_and_tells_two_uses_apart(root: Path) -> None:
    one, other = dataset(root).identity(), dataset(root, filter="nearest").identity()
    assert json.loads(json.dumps(one)) == one
    assert one["characters"] == {"train": 2, "val": 2, "test": 2}
    assert one["sha256"] != other["sha256"]


def test_the_registry_knows_which_fields_yaml_sets() -> None:
    declared = declaration("dataset", "omniglot")
    assert set(declared.settings) == set(SETTINGS)
    assert declared.runtime == ("data_dir", "device")


# The published one-shot runs


@pytest.fixture
def one_shot(root: Path, monkeypatch: pytest.MonkeyPatch) -> Omniglot:
    """Two runs of the tiny copy's test alphabet, its characters in the other order."""
    monkeypatch.setattr(omniglot_runs, "RUNS", {"Kannada": (((5, 8), (3, 2)), (2, 1))})
    monkeypatch.setattr(omniglot, "RUN", TaskShape(2, 1, 1))
    return dataset(root, split="lake", test_tasks="runs", rotations_test="classes")


def test_runs_hold_the_listed_drawings_whatever_is_drawn(one_shot: Omniglot) -> None:
    tasks = one_shot.tasks("test", TaskShape(2, 1, 1)).sample(50, torch.Generator().manual_seed(7))
    images, index = one_shot.packed
    assert index["characters"][4:] == ["images_evaluation/Kannada/character01", "images_evaluation/Kannada/character02"]
    for part, drawers in ((tasks.support, (5, 3)), (tasks.query, (8, 2))):
        assert part.y.tolist() == [[0, 1], [0, 1]]
        expected = [[images[row, drawer - 1] for row in (5, 4)] for drawer in drawers]
        assert torch.equal(part.x, (255 - torch.stack([torch.stack(run) for run in expected])).float() / 255)


def test_runs_ask_for_their_shape_and_for_training_on_the_other_alphabets(one_shot: Omniglot, root: Path) -> None:
    with pytest.raises(ConfigError, match=r"eval.ways, shots and queries are 2, 1 and 5: .* has 2, 1 and 1"):
        one_shot.tasks("test", TaskShape(2, 1, 5))
    with pytest.raises(ConfigError, match=r"dataset.split=vinyals trains on .*: use dataset.split=lake"):
        dataset(root, test_tasks="runs").tasks("test", TaskShape(2, 1, 1))
    assert len(sampler_of(dataset(root, test_tasks="runs"), "val", queries=5).table) == 2  # validation is drawn


# Splits

CHARACTERS = [
    *(f"images_background/A{n % 29:02}/character{n // 29:02}" for n in range(938)),
    *(f"images_background/Latin/character{n + 1:02}" for n in range(26)),
    *(f"images_evaluation/B{n % 20:02}/character{n // 20:02}" for n in range(659)),
]


@pytest.mark.parametrize(
    ("split", "sizes"), [("random", [1100, 100, 423]), ("lake", [864, 100, 659]), ("latin", [1497, 100, 26])]
)
def test_seeded_splits_are_disjoint_and_of_their_sizes(split: str, sizes: list[int]) -> None:
    one, again, other = (divide(CHARACTERS, split, seed) for seed in (1, 1, 2))
    assert [len(rows) for rows in one.values()] == sizes
    assert sorted(row for rows in one.values() for row in rows) == list(range(1623))
    assert one == again
    assert one != other


def test_alphabets_are_tested_whole() -> None:
    assert divide(CHARACTERS, "lake", 1)["test"] == list(range(964, 1623))
    assert divide(CHARACTERS, "latin", 1)["test"] == list(range(938, 964))


# The real thing

real = pytest.mark.skipif("METARUN_DATA" not in os.environ, reason="METARUN_DATA is not set")


@pytest.fixture(scope="module")
def omniglot_data(shared_cache: Path) -> Omniglot:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("METARUN_CACHE", str(shared_cache))
        data = dataset(Path(os.environ["METARUN_DATA"]) / "omniglot")
        data.prepare()
        return data


@real
@pytest.mark.integration  # packs all of it
def test_the_whole_collection_is_packed(omniglot_data: Omniglot) -> None:
    images, index = omniglot_data.packed
    assert images.shape == (1623, 20, 1, 28, 28)
    assert (index["alphabets"], index["images"]) == (50, 32460)
    assert (images.flatten(2).float().mean(-1) > 128).all()  # mostly paper
    assert images.flatten(2).amin(-1).max() < 200  # ink in every one


@real
@pytest.mark.integration  # packs all of it
def test_one_known_image_equals_an_independent_decoding(omniglot_data: Omniglot) -> None:
    images, index = omniglot_data.packed
    root, character = Path(str(omniglot_data.path)), "images_evaluation/Tibetan/character07"
    with zipfile.ZipFile(root / "omniglot-py" / "images_evaluation.zip") as archive:
        name = next(n for n in archive.namelist() if n.startswith(character) and n.endswith("_13.png"))
        pixels = np.asarray(Image.open(archive.open(name)), dtype=np.uint8) * 255
    expected = np.asarray(Image.fromarray(pixels).resize((28, 28), Image.Resampling.LANCZOS))
    assert (images[index["characters"].index(character), 12, 0].numpy() == expected).all()


@real
@pytest.mark.integration  # packs all of it
def test_vinyals_equals_the_published_lists(omniglot_data: Omniglot) -> None:
    characters = omniglot_data.packed[1]["characters"]
    for split, rows in divide(characters, "vinyals", 0).items():
        lines = (Path(str(omniglot_data.path)) / "splits" / "vinyals" / f"{split}.txt").read_text().split()
        assert {characters[row].split("/", 1)[1] for row in rows} == {line.rsplit("/", 1)[0] for line in lines}
        assert 4 * len(rows) == len(lines)


@real
def test_runs_are_those_of_the_published_archive() -> None:
    """Every image of all_runs.zip, by its run's own list of which class each test image is of."""
    root = Path(os.environ["METARUN_DATA"]) / "omniglot"
    published = root / "one-shot-classification" / "all_runs.zip"
    if not published.is_file():
        pytest.skip("all_runs.zip is not in METARUN_DATA")
    with (
        zipfile.ZipFile(root / "omniglot-py" / "images_evaluation.zip") as collection,
        zipfile.ZipFile(published) as runs,
    ):
        names = sorted(name for name in collection.namelist() if name.endswith(".png"))
        characters = sorted({name.rpartition("/")[0] for name in names})

        def pixels(archive: zipfile.ZipFile, name: str) -> bytes:
            return Image.open(archive.open(name)).tobytes()

        rows, drawings = omniglot_runs.locate_runs(characters)
        for run, (row, (drawing,)) in enumerate(zip(rows[:, :, 0].tolist(), drawings.tolist()), start=1):
            listed = runs.read(f"run{run:02}/class_labels.txt").decode().split()
            query_of = dict(zip(listed[1::2], listed[::2]))
            for number, character in enumerate(row, start=1):
                support = f"run{run:02}/training/class{number:02}.png"
                for name, which in zip((support, query_of[support]), drawing):
                    assert pixels(runs, name) == pixels(collection, names[20 * character + which])


@real
def test_nearest_is_what_pillow_makes_of_the_1_bit_image(tmp_path: Path) -> None:
    """MAML's code asks for LANCZOS on the 1-bit files; Pillow then takes the nearest pixel all the same."""
    path = Path(os.environ["METARUN_DATA"]) / "omniglot" / "omniglot-py" / "images_background.zip"
    with zipfile.ZipFile(path) as archive:
        name = next(n for n in archive.namelist() if n.endswith(".png"))
        raw = Image.open(archive.open(name))
        theirs = np.asarray(raw.resize((28, 28), Image.Resampling.LANCZOS).convert("L"))
        ours = read_image(path, name, archive.read(name), 28, "nearest")
    assert (ours == theirs).all()
