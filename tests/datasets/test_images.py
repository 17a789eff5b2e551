"""Picture sets: every form in which users have them holds the same pictures and gives the same tasks."""

import io
import pickle
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.config.errors import ConfigError
from metarun.core.types import TaskShape
from metarun.datasets.sampling.augment import PictureTransform
from metarun.datasets.storage import known_sets
from metarun.datasets.storage.packing import Form, convert
from tests.support.tiny_pictures import (
    CLASSES,
    FORMS,
    colours,
    encoded,
    images,
    packings,
    pieces,
    write,
    write_cifar,
    write_folders,
    write_ravi,
)

pytestmark = pytest.mark.usefixtures("picture_cache")
EXPECTED = sorted((f"{piece.split}/{piece.label}", piece.colour) for piece in pieces())


# Forms


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_miniimagenet_holds_the_same_pictures(form: str, pictures: Path) -> None:
    FORMS[form](pictures)
    dataset = images("miniimagenet", pictures)
    assert sorted(colours(dataset)) == EXPECTED
    assert dataset.identity()["classes"] == CLASSES


@pytest.mark.parametrize("form", ["class folders", "zips of class folders", "tables and a folder", "tables and tars"])
def test_a_folder_of_ones_own_comes_in_them_too(form: str, pictures: Path) -> None:
    FORMS[form](pictures)
    assert sorted(colours(images("folder", pictures))) == EXPECTED


@pytest.mark.parametrize("split", [True, False])
def test_an_archive_beside_class_folders_hides_none_of_them(split: bool, pictures: Path) -> None:
    write_folders(pictures, split)
    with zipfile.ZipFile(pictures / "old.zip", "w") as archive:
        archive.writestr("other/1.png", encoded((1, 2, 3)))
    divided = colours(images("folder", pictures, split_fractions=[0.5, 0.2, 0.3]))
    assert sorted(colour for _, colour in divided) == sorted(piece.colour for piece in pieces())


def test_classes_without_splits_are_divided_by_the_seed(pictures: Path) -> None:
    write_folders(pictures, split=False)
    parts = {"split_fractions": [0.5, 0.2, 0.3]}
    first, again, other = (images("folder", pictures, split_seed=seed, **parts) for seed in (1, 1, 2))
    split = first.split_classes()
    assert sorted(row for rows in split.values() for row in rows) == list(range(7))
    assert {name: len(rows) for name, rows in split.items()} == {"train": 4, "val": 1, "test": 2}
    assert split == again.split_classes()
    assert split != other.split_classes()


def test_one_table_names_the_classes(pictures: Path) -> None:
    for piece in pieces():
        write(pictures / "all" / piece.name, encoded(piece.colour))
    rows = "".join(f"{piece.name},{piece.label}\n" for piece in pieces())
    write(pictures / "labels.csv", f"file,class\n{rows}".encode())
    expected = sorted((f"None/{piece.label}", piece.colour) for piece in pieces())
    assert sorted(colours(images("folder", pictures))) == expected


def test_tieredimagenets_pickles_and_lists(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        known_sets.KNOWN_SETS,
        "tieredimagenet",
        replace(known_sets.KNOWN_SETS["tieredimagenet"], classes=(3, 2, 2)),
    )
    for split in CLASSES:
        chosen = [piece for piece in pieces() if piece.split == split]
        labels = [sorted({piece.label for piece in chosen}).index(piece.label) for piece in chosen]
        encodings = [np.frombuffer(encoded(piece.colour), dtype=np.uint8) for piece in chosen]
        write(pictures / f"{split}_images_png.pkl", pickle.dumps(encodings))
        write(pictures / f"{split}_labels.pkl", pickle.dumps({"label_specific": np.array(labels)}))
    by_number = sorted((f"{p.split}/{int(p.label[-1])}", p.colour) for p in pieces())
    assert sorted(colours(images("tieredimagenet", pictures))) == by_number


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize(("name", "train"), [("cifar_fs", "dolphin"), ("fc100", "ray")])
def test_cifar100_by_the_published_lists(
    name: str, train: str, unpacked: bool, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pictures of each of the 100 classes; whole is 600."""
    names = write_cifar(pictures, per_class=2, unpacked=unpacked)
    with pytest.raises(ConfigError, match=r"is not whole, class \w+ of train has 2 pictures, not 600"):
        images(name, pictures).prepare()
    known = known_sets.KNOWN_SETS[name]
    found = known.find(pictures)
    assert found is not None
    assert {split: len(classes) for split, classes in found.items()} == dict(zip(CLASSES, known.classes))
    assert train in found["train"]
    monkeypatch.setitem(known_sets.KNOWN_SETS, name, replace(known, per_class=2))
    packed = images(name, pictures).packed
    shown = {
        packed.classes[label].name: int(picture[0, 0, 0]) for label, picture in zip(packed.labels, packed.pictures)
    }
    assert shown == {label: names.index(label) for label in names}


# Pictures


def test_a_picture_of_any_kind_becomes_a_square_of_colours() -> None:
    form = Form(size=2, channels=3, resize="squeeze", filter="box")

    def pixels(image: Image.Image, format: str = "PNG", **options: Any) -> Any:
        out = io.BytesIO()
        image.save(out, format, **options)
        found = convert(out.getvalue(), form)
        assert isinstance(found, bytes), found
        return np.frombuffer(found, np.uint8).reshape(3, 2, 2).transpose(1, 2, 0).tolist()

    red, blue = [255, 0, 0], [0, 0, 255]
    wide = Image.new("RGB", (4, 2), (255, 0, 0))
    wide.paste((0, 0, 255), (2, 0, 4, 2))  # red on the left, blue on the right
    assert pixels(wide) == [[red, blue], [red, blue]]
    assert pixels(Image.new("L", (2, 2), 7)) == [[[7] * 3] * 2] * 2
    deep = np.array([[0, 7 * 257], [0, 65535]], dtype=np.uint16)  # 257: from 255 to 65535
    assert pixels(Image.fromarray(deep)) == [[[0] * 3, [7] * 3], [[0] * 3, [255] * 3]]
    assert pixels(Image.new("RGBA", (2, 2), (0, 0, 255, 0))) == [[[255] * 3] * 2] * 2  # seen through: white paper
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: to be shown turned to the right
    assert pixels(wide, exif=turned) == [[red, red], [blue, blue]]


def test_crop_takes_the_middle_and_squeeze_the_whole() -> None:
    striped = np.repeat(np.array([10, 20, 20, 30], dtype=np.uint8), 2)[None, :, None].repeat(4, 0).repeat(3, 2)  # 4 x 8
    for form, row in ((Form(4, 1, "crop", "box"), [20] * 4), (Form(4, 1, "squeeze", "box"), [10, 20, 20, 30])):
        pixels = convert(striped, form)
        assert isinstance(pixels, bytes), pixels
        assert np.frombuffer(pixels, np.uint8).reshape(4, 4).tolist() == [row] * 4


def test_broken_pictures_of_ones_own_are_left_out_and_told_of(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_folders(pictures)
    first = pieces()[0]
    write(pictures / "train" / first.label / "broken.png", encoded(first.colour)[:40])
    write(pictures / "train" / first.label / "page.jpg", b"<html>log in</html>")
    bomb = io.BytesIO()
    Image.new("1", (10000, 8001)).save(bomb, "PNG")
    write(pictures / "val" / pieces()[12].label / "bomb.png", bomb.getvalue())
    dataset = images("folder", pictures)
    assert sorted(colours(dataset)) == EXPECTED
    told = dataset.describe()
    assert "3 pictures could not be used" in told
    assert "page.jpg: it is not a picture" in told
    assert "bomb.png: 10000 x 8001 pixels are more than 80000000" in told
    assert "broken.png: " in told


def test_a_published_set_must_be_whole(pictures: Path, picture_cache: Path) -> None:
    write_ravi(pictures)
    broken = pictures / "images" / pieces()[5].name
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ConfigError, match=rf"{broken.name} cannot be used \(.*\): get a whole copy"):
        images("miniimagenet", pictures).prepare()
    assert packings(picture_cache) == []
    broken.unlink()
    with pytest.raises(ConfigError, match=rf"train.csv lists 1 picture not found in .*, for example {broken.name}"):
        images("miniimagenet", pictures).prepare()


def test_equal_pictures_are_found_within_and_across_splits(pictures: Path) -> None:
    write_folders(pictures)
    train, val = pieces()[0], pieces()[12]
    write(pictures / "train" / train.label / "again.png", encoded(train.colour, "BMP"))
    write(pictures / "val" / val.label / "leak.png", encoded(pieces()[1].colour))
    dataset = images("folder", pictures)
    dataset.prepare()
    told = dataset.describe()
    assert "equal pictures within train: 1 group," in told
    assert (
        f"equal pictures across train and val: 1 group, for example train/{train.label}/{pieces()[1].name} = " in told
    )


# Tasks


def test_small_classes_are_refused_with_the_numbers_or_left_out(pictures: Path) -> None:
    write_folders(pictures)
    extra = pieces()[0]
    for i in range(2):
        write(pictures / "train" / extra.label / f"more{i}.png", encoded((1, 2, i)))
    shape = TaskShape(ways=1, shots=2, queries=4)
    with pytest.raises(
        ConfigError, match=r"2 of the 3 classes of train have fewer pictures, n00000001 only 4: ask for"
    ):
        images("folder", pictures).tasks("train", shape)
    sampler = images("folder", pictures, small_classes="skip").tasks("train", shape)
    assert len(sampler.table) == 1
    with pytest.raises(ConfigError, match=r"ways is 2: 1 of the 3 classes of train are left, the others"):
        images("folder", pictures, small_classes="skip").tasks("train", TaskShape(2, 2, 4))


def test_only_training_changes_pictures_and_normalising_is_for_all(pictures: Path) -> None:
    write_folders(pictures)
    changes = {"flip": True, "crop": 2, "jitter": 0.5, "rotations_train": "classes"}
    dataset = images("folder", pictures, mean=[0.5, 0.4, 0.3], std=[0.5, 0.25, 0.2], **changes)
    train, val = dataset.tasks("train", TaskShape(2, 1, 1)), dataset.tasks("val", TaskShape(2, 1, 1))
    assert (len(train.table), len(val.table)) == (12, 2)
    normalised = PictureTransform(mean=[0.5, 0.4, 0.3], std=[0.5, 0.25, 0.2])
    assert val.transform == normalised
    assert train.transform == replace(normalised, crop=2, flip=True, jitter=0.5)
    x = val.sample(1, torch.Generator().manual_seed(0)).query.x[0, 0, :, 0, 0]
    stored = (x * torch.tensor([0.5, 0.25, 0.2]) + torch.tensor([0.5, 0.4, 0.3])) * 255
    assert tuple(stored.round().int().tolist()) in [piece.colour for piece in pieces() if piece.split == "val"]
