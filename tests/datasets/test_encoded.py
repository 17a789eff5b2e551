"""Features of pictures, texts and molecules in place of them: the same tasks, computed once, kept in the cache."""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.core.types import Dataset, TaskShape
from metarun.datasets.encoded import Encoded
from metarun.datasets.storage.growing import BLOCK, grow
from metarun.datasets.storage.known_sets import read_class_lists
from tests.support import tiny_assays, tiny_pictures, tiny_texts
from tests.support.tiny_encoder import SIZE, WEIGHTS, TinyPictures, TinyStrings

SHAPE = TaskShape(2, 1, 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def draw(dataset: Dataset, shape: TaskShape = SHAPE) -> Any:
    return dataset.tasks("test", shape).sample(3, torch.Generator().manual_seed(1))


def test_tasks_hold_the_features_of_the_same_pictures(pictures: Path) -> None:
    tiny_pictures.write_folders(pictures)
    plain = tiny_pictures.images("folder", pictures, image_size=4)
    encoded = Encoded(plain, TinyPictures(), {"name": "tiny_pictures"})
    (support, query), seen = draw(encoded), draw(plain)
    assert torch.equal(support.y, seen.support.y)
    for features, shown in ((support.x, seen.support.x), (query.x, seen.query.x)):
        expected = torch.stack([torch.stack([WEIGHTS @ x.mean((1, 2)) for x in task]) for task in shown])
        assert torch.equal(features, expected)  # bit for bit, though computed in other company
    assert encoded.tasks("test", SHAPE).spec.input_shape == (SIZE,)


def test_tasks_hold_the_features_of_the_same_texts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tiny_texts.write_texts(tmp_path / "texts", "clinc150", 3, monkeypatch)
    encoded = Encoded(tiny_texts.dataset("clinc150", root), TinyStrings(), {"name": "tiny_strings"})
    source = encoded.tasks("test", SHAPE)
    task = source.sample(2, torch.Generator().manual_seed(1))
    classes = source.draw_classes(2, torch.Generator().manual_seed(1))  # type: ignore[attr-defined]
    order = read_class_lists("clinc150")["test"]
    for x, label in zip(task.support.x.flatten(0, 1), classes.flatten().tolist()):
        possible = TinyStrings().encode([tiny_texts.text(order[label], number) for number in range(3)])
        assert any(torch.equal(x, features) for features in possible)


def test_tasks_hold_the_features_of_the_same_molecules(tmp_path: Path) -> None:
    plain = tiny_assays.dataset(tiny_assays.write_assays(tmp_path / "assays"), width=40)
    encoded = Encoded(plain, TinyStrings(), {"name": "tiny_strings"})
    shape = TaskShape(2, 4, 8)
    task, spec = draw(encoded, shape), encoded.tasks("test", shape).spec
    everything = TinyStrings().encode([tiny_assays.molecule("CHEMBL5", number) for number in range(12)])
    found = torch.cat([task.support.x[0], task.query.x[0]])
    assert sorted(found.tolist()) == sorted(everything.tolist())
    assert (spec.inputs, spec.metric) == ("numbers", "delta_auprc")


def test_features_are_computed_once_for_all_methods_and_again_for_another_encoder(pictures: Path) -> None:
    tiny_pictures.write_folders(pictures)
    counts = []
    for version in (1, 1, 2):
        encoder = TinyPictures(version)
        draw(Encoded(tiny_pictures.images("folder", pictures, image_size=4), encoder, {"name": "tiny_pictures"}))
        counts.append(sum(encoder.seen))
    number = len(tiny_pictures.pieces())
    assert counts == [number, 0, number]


def test_pictures_that_training_would_change_are_refused(pictures: Path) -> None:
    tiny_pictures.write_folders(pictures)
    for change in ({"flip": True}, {"rotations_train": "classes"}, {"mean": [0.5] * 3, "std": [1.0] * 3}):
        plain = tiny_pictures.images("folder", pictures, image_size=4, **change)
        with pytest.raises(ConfigError, match=r"reads each picture once.*dataset\.rotations_train=none"):
            Encoded(plain, TinyPictures(), {"name": "tiny_pictures"}).tasks("train", SHAPE)


def test_an_encoder_of_something_else_is_refused(pictures: Path) -> None:
    tiny_pictures.write_folders(pictures)
    plain = tiny_pictures.images("folder", pictures)
    with pytest.raises(ConfigError, match=r"encoder=tiny_strings reads strings, this dataset has pictures: choose eff"):
        Encoded(plain, TinyStrings(), {"name": "tiny_strings"})


@pytest.mark.parametrize(("name", "seen"), [("miniimagenet", "yes, 2 of 2"), ("folder", "unknown")])
def test_it_is_said_whether_the_test_classes_were_seen(
    pictures: Path, picture_cache: Path, monkeypatch: pytest.MonkeyPatch, name: str, seen: str
) -> None:
    from metarun.encoders.efficientnet_lite0 import EfficientNetLite0

    tiny_pictures.write_folders(pictures)
    encoder = EfficientNetLite0(224, True, torch.device("cpu"))
    encoded = Encoded(tiny_pictures.images(name, pictures), encoder, {"name": "efficientnet_lite0"})
    assert encoded.identity()["encoder"]["classes_seen"] == seen
    assert f"classes seen in pre-training: {seen}" in encoded.notes()[-1]


def double(items: Tensor | Sequence[str]) -> Tensor:
    assert isinstance(items, Tensor)
    return 2 * items


def test_a_table_that_was_interrupted_goes_on_after_its_last_whole_block(cache: Path) -> None:
    items, made = torch.randn(3 * BLOCK + 5, 2), []

    def make(part: Tensor | Sequence[str]) -> Tensor:
        made.append(len(part))
        if len(made) == 3:
            raise KeyboardInterrupt
        return double(part)

    with pytest.raises(KeyboardInterrupt):
        grow("t.f32", len(items), lambda: items, make, "rows")
    partial = cache / ".t.f32.partial"
    partial.write_bytes(partial.read_bytes() + b"torn")  # as a block that was half written
    assert torch.equal(grow("t.f32", len(items), lambda: items, make, "rows"), 2 * items)
    assert made == [BLOCK, BLOCK, BLOCK, BLOCK, BLOCK, 5]  # two blocks, the interrupt, one to know the width, the rest
    assert not partial.exists()


SLOW = """
import sys, time, torch
from metarun.datasets.storage.known_sets import read_class_lists
from metarun.datasets.storage.growing import grow
def make(items):
    time.sleep(0.02)
    print("block", flush=True)
    return 2 * items
items = torch.arange(4000.0)[:, None]
assert torch.equal(grow("t.f32", len(items), lambda: items, make, "rows"), 2 * items)
"""


@pytest.mark.integration
def test_two_processes_make_a_table_once_and_a_killed_one_is_continued(cache: Path) -> None:
    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    first = start()
    assert first.stdout is not None
    for _ in range(10):
        first.stdout.readline()
    first.kill()
    first.communicate()
    both = [start(), start()]
    told = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], told
    blocks = sorted(out.count("block") for out, _ in told)
    whole = -(-4000 // BLOCK)
    assert blocks[0] == 0  # one waited
    assert whole - 10 <= blocks[1] <= whole - 8  # nine or ten blocks were there; the first is made again for its width
