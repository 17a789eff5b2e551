"""The drawn characters: reproducible, disjoint between splits, recognisable but not by comparing pixels."""

from pathlib import Path
from typing import Any

import pytest
import torch

from metarun.config.errors import ConfigError
from metarun.config.registry import build
from metarun.core.types import Split, TaskShape, TaskSpec
from metarun.datasets.glyphs import Glyphs
from metarun.datasets.storage.tree import SPLITS
from tests.support.shipped import read_settings
from tests.support.tiny import nearest_by_pixels

SMALL = {"classes_train": 12, "classes_val": 6, "classes_test": 8, "drawings": 5}
ONE_SHOT = TaskShape(ways=5, shots=1, queries=4)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path))
    return tmp_path


def glyphs(**changes: Any) -> Glyphs:
    """The shipped settings, in small."""
    built = build("dataset", read_settings("glyphs") | SMALL | changes, device=torch.device("cpu"))
    assert isinstance(built, Glyphs)
    return built


def images(split: Split, **changes: Any) -> torch.Tensor:
    """[classes, drawings, 1, S, S]."""
    table = glyphs(**changes).tasks(split, ONE_SHOT).table
    return table.examples.view(len(table), -1, *table.example_shape)


def test_shapes_and_types() -> None:
    for split, classes in zip(SPLITS, (12, 6, 8)):
        assert images(split).shape == (classes, 5, 1, 28, 28)
        assert images(split).dtype == torch.uint8
    tasks = glyphs().tasks("test", ONE_SHOT)
    assert tasks.spec == TaskSpec("classification", (1, 28, 28), 5)
    assert tasks.sample(3, torch.Generator().manual_seed(0)).query.x.shape == (3, 20, 1, 28, 28)


def test_same_settings_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = glyphs().identity()
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "other"))  # so it is drawn again
    assert glyphs().identity() == first
    assert glyphs(generator_seed=1).identity()["sha256"] != first["sha256"]


def test_another_number_of_training_classes_tests_on_the_same_images() -> None:
    assert torch.equal(images("test"), images("test", classes_train=20))


def test_splits_share_no_image() -> None:
    drawings = torch.cat([images(split).flatten(0, 1).flatten(1) for split in SPLITS])
    assert len(drawings.unique(dim=0)) == (12 + 6 + 8) * 5  # nor do two drawings of a class coincide


def test_every_drawing_has_ink_and_paper() -> None:
    """At the shipped settings 3 to 26 % of the ink a full image would have; the bounds leave some room."""
    ink = images("train").float().mean((2, 3, 4)) / 255
    assert images("train").amax() == 255
    assert ink.min() > 0.01
    assert ink.max() < 0.4


def test_without_jitter_and_warp_only_the_pen_differs() -> None:
    """So each drawing's ink, thinnest to thickest pen, contains the one before."""
    for drawings in images("train", jitter=0.0, warp=0.0).flatten(2):
        thin_to_thick = drawings[drawings.long().sum(-1).argsort()].int()
        assert (thin_to_thick.diff(dim=0) >= 0).all()


def test_pixels_tell_something_but_not_all() -> None:
    """Nearest neighbour by pixels: chance is 20 %; generator seeds 0..3 all gave 63 to 66 % at full size."""
    tasks = glyphs(classes_test=50, drawings=10).tasks("test", ONE_SHOT)
    accuracy = nearest_by_pixels(tasks.sample(400, torch.Generator().manual_seed(0))).mean()
    assert 0.5 < accuracy < 0.8  # 5 standard deviations between seeds


def test_drawn_once_then_read(cache: Path) -> None:
    assert "drawn at first use" in glyphs().describe()
    glyphs().prepare()
    (file,) = cache.glob("*/images.pt")
    torch.save(255 - torch.load(file), file)
    glyphs().prepare()
    assert f"kept in {cache}" in glyphs().describe()
    assert images("val").float().mean() > 128  # the changed file was read, nothing was drawn


def test_a_task_larger_than_the_split_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"(train|val|test) has 6 classes"):
        glyphs().tasks("val", TaskShape(ways=7, shots=1, queries=1))
