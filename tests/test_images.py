"""Picture sets: every form in which users have them holds the same, and what is wrong is one clear line."""

import io
import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.datasets import collections, packing
from metarun.datasets.packing import Form, brought
from metarun.errors import ConfigError
from metarun.types import TaskShape
from tests.tiny_pictures import (
    CLASSES,
    FORMS,
    PER_CLASS,
    colours,
    encoded,
    images,
    pieces,
    write,
    write_cached_pickles,
    write_cifar,
    write_folders,
    write_ravi,
    write_ravi_tars,
    write_zips,
)

EXPECTED = sorted((f"{piece.split}/{piece.label}", piece.colour) for piece in pieces())


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    small = replace(collections.COLLECTIONS["miniimagenet"], classes=tuple(CLASSES.values()), per_class=PER_CLASS)
    monkeypatch.setitem(collections.COLLECTIONS, "miniimagenet", small)
    return tmp_path / "cache"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "pictures"


def packings(cache: Path) -> list[Path]:
    """Everything in the cache but locks."""
    return [path for path in cache.glob("*/*") if path.suffix != ".lock"]


# Forms


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_miniimagenet_holds_the_same_pictures(form, root):
    FORMS[form](root)
    dataset = images("miniimagenet", root)
    assert sorted(colours(dataset)) == EXPECTED
    assert dataset.identity()["classes"] == CLASSES


@pytest.mark.parametrize("form", ["class folders", "zips of class folders", "tables and a folder", "tables and tars"])
def test_a_folder_of_ones_own_comes_in_them_too(form, root):
    FORMS[form](root)
    assert sorted(colours(images("folder", root))) == EXPECTED


@pytest.mark.parametrize("split", [True, False])
def test_an_archive_beside_class_folders_hides_none_of_them(split, root):
    write_folders(root, split)
    with zipfile.ZipFile(root / "old.zip", "w") as archive:
        archive.writestr("other/1.png", encoded((1, 2, 3)))
    assert sorted(colour for _, colour in colours(images("folder", root, split_fractions=[0.5, 0.2, 0.3]))) == sorted(
        piece.colour for piece in pieces()
    )


def test_classes_without_splits_are_divided_by_the_seed(root):
    write_folders(root, split=False)
    parts = {"split_fractions": [0.5, 0.2, 0.3]}
    first, again, other = (images("folder", root, split_seed=seed, **parts) for seed in (1, 1, 2))
    split = {name: first._classes(first._packed, name) for name in CLASSES}
    assert sorted(row for rows in split.values() for row in rows) == list(range(7))
    assert {name: len(rows) for name, rows in split.items()} == {"train": 4, "val": 1, "test": 2}
    assert split == {name: again._classes(again._packed, name) for name in CLASSES}
    assert split != {name: other._classes(other._packed, name) for name in CLASSES}


def test_one_table_names_the_classes(root):
    for piece in pieces():
        write(root / "all" / piece.name, encoded(piece.colour))
    rows = "".join(f"{piece.name},{piece.label}\n" for piece in pieces())
    write(root / "labels.csv", f"file,class\n{rows}".encode())
    expected = sorted((f"None/{piece.label}", piece.colour) for piece in pieces())
    assert sorted(colours(images("folder", root))) == expected


def test_tieredimagenets_pickles_and_lists(root, monkeypatch):
    monkeypatch.setitem(
        collections.COLLECTIONS,
        "tieredimagenet",
        replace(collections.COLLECTIONS["tieredimagenet"], classes=tuple(CLASSES.values())),
    )
    for split in CLASSES:
        chosen = [piece for piece in pieces() if piece.split == split]
        labels = [sorted({piece.label for piece in chosen}).index(piece.label) for piece in chosen]
        pictures = [np.frombuffer(encoded(piece.colour), dtype=np.uint8) for piece in chosen]
        write(root / f"{split}_images_png.pkl", pickle.dumps(pictures))
        write(root / f"{split}_labels.pkl", pickle.dumps({"label_specific": np.array(labels)}))
    by_number = sorted((f"{p.split}/{int(p.label[-1])}", p.colour) for p in pieces())
    assert sorted(colours(images("tieredimagenet", root))) == by_number


@pytest.mark.parametrize("unpacked", [True, False])
@pytest.mark.parametrize(("name", "train"), [("cifar_fs", "dolphin"), ("fc100", "ray")])
def test_cifar100_by_the_published_lists(name, train, unpacked, root, monkeypatch):
    """Two pictures of each of the 100 classes; whole is 600."""
    names = write_cifar(root, per_class=2, unpacked=unpacked)
    with pytest.raises(ConfigError, match=r"is not whole, class \w+ of train has 2 pictures, not 600"):
        images(name, root).prepare()
    known = collections.COLLECTIONS[name]
    found = known.found(root)
    assert found is not None
    assert {split: len(classes) for split, classes in found.items()} == dict(zip(CLASSES, known.classes))
    assert train in found["train"]
    monkeypatch.setitem(collections.COLLECTIONS, name, replace(known, per_class=2))
    packed = images(name, root)._packed
    shown = {
        packed.classes[label].name: int(picture[0, 0, 0]) for label, picture in zip(packed.labels, packed.pictures)
    }
    assert shown == {label: names.index(label) for label in names}


# Pictures


def test_a_picture_of_any_kind_becomes_a_square_of_colours():
    form = Form(size=2, channels=3, resize="squeeze", filter="box")

    def pixels(image: Image.Image, format: str = "PNG", **options: object) -> list[list[list[int]]]:
        out = io.BytesIO()
        image.save(out, format, **options)
        found = brought(out.getvalue(), form)
        assert isinstance(found, bytes), found
        return np.frombuffer(found, np.uint8).reshape(3, 2, 2).transpose(1, 2, 0).tolist()

    red, blue = [255, 0, 0], [0, 0, 255]
    wide = Image.new("RGB", (4, 2), (255, 0, 0))
    wide.paste((0, 0, 255), (2, 0, 4, 2))  # red on the left, blue on the right
    assert pixels(wide) == [[red, blue], [red, blue]]
    assert pixels(Image.new("L", (2, 2), 7)) == [[[7] * 3] * 2] * 2
    assert pixels(Image.fromarray(np.full((2, 2), 7 * 256, dtype=np.uint16))) == [[[7] * 3] * 2] * 2
    assert pixels(Image.new("RGBA", (2, 2), (0, 0, 255, 0))) == [[[255] * 3] * 2] * 2  # seen through: white paper
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held upright: to be shown turned to the right
    assert pixels(wide, exif=turned) == [[red, red], [blue, blue]]


def test_crop_takes_the_middle_and_squeeze_the_whole():
    striped = np.repeat(np.array([10, 20, 20, 30], dtype=np.uint8), 2)[None, :, None].repeat(4, 0).repeat(3, 2)  # 4 x 8
    crop, squeeze = (brought(striped, Form(4, 1, how, "box")) for how in ("crop", "squeeze"))
    assert np.frombuffer(crop, np.uint8).reshape(4, 4).tolist() == [[20] * 4] * 4
    assert np.frombuffer(squeeze, np.uint8).reshape(4, 4).tolist() == [[10, 20, 20, 30]] * 4


def test_broken_pictures_of_ones_own_are_left_out_and_told_of(root, capsys):
    write_folders(root)
    first = pieces()[0]
    write(root / "train" / first.label / "broken.png", encoded(first.colour)[:40])
    write(root / "train" / first.label / "page.jpg", b"<html>log in</html>")
    bomb = io.BytesIO()
    Image.new("1", (10000, 8001)).save(bomb, "PNG")
    write(root / "val" / pieces()[12].label / "bomb.png", bomb.getvalue())
    dataset = images("folder", root)
    assert sorted(colours(dataset)) == EXPECTED
    told = dataset.describe()
    assert "3 pictures could not be used" in told
    assert "page.jpg: it is not a picture" in told
    assert "bomb.png: 10000 x 8001 pixels are more than 80000000" in told
    assert "broken.png: " in told


def test_a_published_set_must_be_whole(root, cache):
    write_ravi(root)
    broken = root / "images" / pieces()[5].name
    broken.write_bytes(broken.read_bytes()[:40])
    with pytest.raises(ConfigError, match=rf"{broken.name} cannot be used \(.*\): get a whole copy"):
        images("miniimagenet", root).prepare()
    assert packings(cache) == []
    broken.unlink()
    with pytest.raises(ConfigError, match=rf"train.csv lists 1 pictures that are not in .*, as {broken.name}"):
        images("miniimagenet", root).prepare()


def test_equal_pictures_are_found_within_and_across_splits(root):
    write_folders(root)
    train, val = pieces()[0], pieces()[12]
    write(root / "train" / train.label / "again.png", encoded(train.colour, "BMP"))
    write(root / "val" / val.label / "leak.png", encoded(pieces()[1].colour))
    dataset = images("folder", root)
    dataset.prepare()
    told = dataset.describe()
    assert "equal pictures within train: 1 groups" in told
    assert f"equal pictures across train and val: 1 groups, as train/{train.label}/{pieces()[1].name} = " in told


# Tasks


def test_small_classes_are_refused_with_the_numbers_or_left_out(root):
    write_folders(root)
    extra = pieces()[0]
    for i in range(2):
        write(root / "train" / extra.label / f"more{i}.png", encoded((1, 2, i)))
    shape = TaskShape(ways=1, shots=2, queries=4)
    with pytest.raises(
        ConfigError, match=r"2 of the 3 classes of train have fewer pictures, n00000001 only 4: ask for"
    ):
        images("folder", root).tasks("train", shape)
    sampler = images("folder", root, small_classes="skip").tasks("train", shape)
    assert len(sampler.table) == 1
    with pytest.raises(ConfigError, match="ways is 2: this split has 1 classes"):
        images("folder", root, small_classes="skip").tasks("train", TaskShape(2, 2, 4))


def test_only_training_changes_pictures_and_normalising_is_for_all(root):
    write_folders(root)
    changes = {"flip": True, "crop": 2, "jitter": 0.5, "rotations_train": "classes"}
    dataset = images("folder", root, mean=[0.5, 0.4, 0.3], std=[0.5, 0.25, 0.2], **changes)
    train, val = (dataset.tasks(split, TaskShape(2, 1, 1)) for split in ("train", "val"))
    assert (len(train.table), len(val.table)) == (12, 2)
    assert (val.view.crop, val.view.flip, val.view.jitter) == (0, False, 0)
    assert (train.view.crop, train.view.flip, train.view.jitter) == (2, True, 0.5)
    x = val.sample(1, torch.Generator().manual_seed(0)).query.x[0, 0, :, 0, 0]
    stored = (x * torch.tensor([0.5, 0.25, 0.2]) + torch.tensor([0.5, 0.4, 0.3])) * 255
    assert tuple(stored.round().int().tolist()) in [piece.colour for piece in pieces() if piece.split == "val"]


# What is wrong


def malicious(root: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {root}/harmed",)

    write_cached_pickles(root)
    write(root / "mini-imagenet-cache-train.pkl", pickle.dumps({"image_data": [], "class_dict": Evil()}))


def truncated(root: Path) -> None:
    write_ravi_tars(root)
    whole = (root / "images-val.tar.xz").read_bytes()
    write(root / "images-val.tar.xz", whole[: len(whole) // 2])


def web_page(root: Path) -> None:
    write_zips(root)
    write(root / "val.zip", b"<!DOCTYPE html><html>quota exceeded</html>")


def escaping_zip(root: Path) -> None:
    write_zips(root)
    with zipfile.ZipFile(root / "val.zip", "w") as archive:
        archive.writestr("../../evil.png", encoded((1, 2, 3)))


def linking_tar(root: Path) -> None:
    write_ravi_tars(root)
    with tarfile.open(root / "images-val.tar.xz", "w:xz") as archive:
        link = tarfile.TarInfo("images/evil.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


def linking_folder(root: Path) -> None:
    write_folders(root)
    (root / "train" / "elsewhere").symlink_to("/etc")


def not_a_table(root: Path) -> None:
    write_ravi(root)
    write(root / "val.csv", b"a,b\n1,2\n")


def a_class_short(root: Path) -> None:
    write_folders(root)
    for piece in pieces():
        if piece.label == "n01000000":
            (root / "val" / piece.label / piece.name).unlink()


WRONG = {
    malicious: r"mini-imagenet-cache-train.pkl cannot be used \(it asks for posix.system, which may run anything\)",
    truncated: r"images-val.tar.xz is damaged or cut short \(.*\): replace it by a whole copy",
    web_page: r"val.zip is a web page, not an archive: replace it by a whole copy",
    escaping_zip: r"val.zip holds '../../evil.png', a path that leads out of it",
    linking_tar: r"images-val.tar.xz holds images/evil.png, a link to /etc/passwd",
    linking_folder: r"elsewhere is a link that leads out of .*: put the files themselves there",
    not_a_table: r"val.csv is no table of pictures: its first line must name the columns filename,label",
    a_class_short: r"is not whole, val has 1 classes, not 2: its pictures are ImageNet's",
}


@pytest.mark.parametrize("spoil", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_leaves_nothing(spoil, root, cache):
    spoil(root)
    with pytest.raises(ConfigError, match=WRONG[spoil]) as error:
        images("miniimagenet", root).prepare()
    assert "\n" not in str(error.value)
    assert packings(cache) == []
    assert not (root / "harmed").exists()


def test_nothing_there_says_where_to_get_it(tmp_path):
    with pytest.raises(ConfigError, match=r"nothing at .*mini-imagenet: its pictures are ImageNet's: .* dataset.path"):
        images("miniimagenet", None, data_dir=tmp_path).prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty has no pictures in class folders"):
        images("folder", tmp_path / "empty").prepare()


# Packing


def test_a_killed_packing_is_gone_on_with(root, cache, monkeypatch):
    write_folders(root)
    images("folder", root).prepare()
    whole = packings(cache)[0]
    files = {name: (whole / name).read_bytes() for name in ("pictures.u8", "labels.i32", "names.txt")}
    index = json.loads((whole / "index.json").read_text())
    subprocess.run(["rm", "-r", str(cache)], check=True)

    monkeypatch.setattr(packing, "BLOCK", 5)
    seen = []

    def killed(content: bytes, form: Form) -> bytes | str:
        seen.append(content)
        if len(seen) > 13:
            raise KeyboardInterrupt
        return brought(content, form)

    monkeypatch.setattr(packing, "brought", killed)
    with pytest.raises(KeyboardInterrupt):
        images("folder", root).prepare()
    (scratch,) = packings(cache)
    assert json.loads((scratch / "progress.json").read_text())["seen"] == 10
    again = []
    monkeypatch.setattr(packing, "brought", lambda content, form: again.append(content) or brought(content, form))
    images("folder", root).prepare()
    assert len(again) == len(pieces()) - 10
    (packed,) = packings(cache)
    assert files == {name: (packed / name).read_bytes() for name in files}
    assert index == json.loads((packed / "index.json").read_text())


def test_a_damaged_packing_is_noticed(root, cache):
    write_folders(root)
    images("folder", root).prepare()
    with (packings(cache)[0] / "pictures.u8").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(
        ConfigError, match=r"are damaged \(a file has another length than it should\): delete that folder"
    ):
        images("folder", root).prepare()


def test_a_full_disk_is_one_line_and_leaves_nothing(root, cache):
    """A limit on the size of files stands in for it."""
    for i in range(40):
        write(root / "a" / f"{i}.png", encoded((i, i, i)))
    program = (
        "import resource, sys; from pathlib import Path; from tests.tiny_pictures import images\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from metarun.errors import ConfigError\n"
        "try: images('folder', Path(sys.argv[1])).prepare()\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(root)], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.stdout.startswith(f"the cache {cache}/folder cannot be written (File too large): set METARUN_CACHE"), (
        done
    )
    assert packings(cache) == []
