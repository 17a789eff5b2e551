"""The split and the classes that a user plainly gave are those that are used; what is not understood is refused."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metarun.config.errors import ConfigError
from metarun.datasets.storage.given import find_given
from metarun.datasets.storage.layouts import find, find_classes, find_splits
from metarun.datasets.storage.packing import Form, convert_all
from metarun.datasets.storage.splits import Found
from metarun.datasets.storage.tables import Column, Sheet
from metarun.datasets.storage.tree import Picture
from tests.support.tiny_pictures import encoded, write

PARTS = {"train": range(4), "val": range(4, 5), "test": range(5, 8)}
Counts = dict[str | None, dict[str, int]]


def put(root: Path, *names: str) -> None:
    for i, name in enumerate(names):
        write(root / name, encoded((i % 256, i // 256, 7)))


def classes(place: str, numbers: range, each: int = 2) -> list[str]:
    return [f"{place}class{c}/{i}.png" for c in numbers for i in range(each)]


def count(root: Path) -> Counts:
    """Split -> class -> number of pictures."""
    found = look(root)
    return {split: {name: len(pictures) for name, pictures in part.items()} for split, part in found.listing.items()}


def look(root: Path) -> Found[Picture]:
    found = find(root)
    assert found is not None
    return found


def expected(splits: tuple[str, ...] = ("train", "val", "test"), each: int = 2) -> Counts:
    return {split: {f"class{c}": each for c in PARTS[split]} for split in splits}


def rows(numbers: range, before: str = "") -> list[str]:
    return [f"{before}{c}_{i}.png,class{c}" for c in numbers for i in range(2)]


def put_flat(root: Path, below: str = "images/") -> None:
    put(root, *(f"{below}{c}_{i}.png" for c in range(8) for i in range(2)))


def in_folders(root: Path, names: dict[str, str]) -> None:
    for split, name in names.items():
        put(root, *classes(f"{name}/", PARTS[split]))


def in_archives(root: Path) -> None:
    root.mkdir()
    for split, numbers in PARTS.items():
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for name in classes(f"{split}/", numbers):
                archive.writestr(name, encoded((1, 2, 3)))


def in_one_archive(root: Path) -> None:
    root.mkdir()
    with zipfile.ZipFile(root / "birds.zip", "w") as archive:
        for split, numbers in PARTS.items():
            for name in classes(f"birds/{split}/", numbers):
                archive.writestr(name, encoded((1, 2, 3)))


def in_tables(root: Path) -> None:
    put_flat(root)
    for split, numbers in PARTS.items():
        (root / f"{split}.csv").write_text("\n".join(["filename,label", *rows(numbers)]))


def in_a_column(root: Path) -> None:
    put_flat(root)
    lines = [f"{row},{split}" for split, numbers in PARTS.items() for row in rows(numbers)]
    (root / "labels.csv").write_text("\n".join(["filename,label,Split", *lines]))


def in_lists(root: Path) -> None:
    put(root, *classes("images/", range(8)))
    for split, numbers in PARTS.items():
        names = [f"class{c}" for c in numbers]
        values = {"class_names": names, "class_roots": [f"./data/images/{name}" for name in names]}
        (root / f"{split}.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    "make",
    [
        lambda root: in_folders(root, {split: split for split in PARTS}),
        lambda root: in_folders(root, {"train": "Train", "val": "Val", "test": "Test"}),
        lambda root: in_folders(root, {"train": "training", "val": "validation", "test": "testing"}),
        lambda root: in_folders(root, {split: f"birds/{split}" for split in PARTS}),
        in_archives,
        in_one_archive,
        in_tables,
        in_a_column,
        in_lists,
    ],
)
def test_every_form_of_a_given_split_is_kept(make: Callable[[Path], None], pictures: Path) -> None:
    make(pictures)
    assert count(pictures) == expected()
    splits = find_splits(pictures)
    assert splits is not None
    assert list(splits) == list(PARTS)
    assert look(pictures).notes == []


@pytest.mark.parametrize(
    "make",
    [
        lambda root: put(root, *(f"class{c}/{split}/{i}.png" for split in PARTS for c in PARTS[split] for i in (0, 1))),
        lambda root: put(root, *(f"class{c}/Training/img/{i}.png" for c in range(5) for i in (0, 1)),
                         *(f"class{c}/testing/img/{i}.png" for c in range(5, 8) for i in (0, 1))),
        lambda root: in_text_lists(root),
        lambda root: in_metadata(root, "file_name,Subset", lambda c, split: split),
    ],
)  # fmt: skip
def test_a_split_within_the_classes_or_in_a_file_beside_them_is_kept(
    make: Callable[[Path], None], pictures: Path
) -> None:
    make(pictures)
    found = {split: list(part) for split, part in look(pictures).listing.items()}
    train, test = ([f"class{c}" for c in numbers] for numbers in (range(5), range(5, 8)))
    assert [*found["train"], *found.get("val", [])] == train
    assert found["test"] == test


def in_text_lists(root: Path) -> None:
    put(root, *classes("images/", range(8)))
    for split, numbers in PARTS.items():
        (root / f"{split}.txt").write_text("".join(f"class{c}\n" for c in numbers))


def in_metadata(root: Path, header: str, rest: Callable[[int, str], str]) -> None:
    put(root, *classes("", range(8)))
    lines = [f"class{c}/{i}.png,{rest(c, split)}" for split in PARTS for c in PARTS[split] for i in (0, 1)]
    (root / "metadata.csv").write_text("\n".join([header, *lines]))


def test_a_split_of_each_classs_pictures_is_no_split_of_classes_and_told(pictures: Path) -> None:
    put(pictures, *(f"class{c}/{split}/{i}.png" for c in range(4) for split in ("train", "test") for i in (0, 1)))
    assert {split: list(part) for split, part in look(pictures).listing.items()} == {
        "train": [f"class{c}" for c in range(4)],
        "test": [f"class{c}" for c in range(4)],
    }
    assert look(pictures).notes[0].startswith("4 classes in both train and test, ")
    shutil.rmtree(pictures)
    put(pictures, *classes("a/train/", range(1)), *classes("", range(1, 3)))
    with pytest.raises(ConfigError, match="has a/train/class0 and, in no such folder of a split, class1: give each"):
        find(pictures)
    shutil.rmtree(pictures)
    put(pictures, "vehicles/train/0.png", "vehicles/bus/0.png", "fish/ray/0.png")  # a train is a vehicle
    assert count(pictures) == {None: {"train": 1, "bus": 1, "ray": 1}}


def test_labels_in_a_table_of_any_name_count_where_there_are_no_class_folders(pictures: Path) -> None:
    put_flat(pictures)
    lines = [f"images/{c}_{i}.png,class{c}" for c in range(8) for i in range(2)]
    (pictures / "metadata.csv").write_text("\n".join(["file_name,label", *lines[:-1]]))
    found = look(pictures)
    assert {name: len(held) for name, held in found.listing[None].items()} == {
        **{f"class{c}": 2 for c in range(7)}, "class7": 1
    }  # fmt: skip
    assert found.origin == "drawn by dataset.split_seed, metadata.csv has no column split"
    assert found.notes == ["1 picture not listed, not read"]
    (pictures / "metadata.csv").write_text("\n".join(["file_name,label,Set", *(f"{line},1" for line in lines)]))
    assert look(pictures).origin == "drawn by dataset.split_seed, metadata.csv has no column split"
    (pictures / "metadata.csv").write_text("file_name,label,Set\nimages/0_0.png,a,train\nimages/0_1.png,a,tset\n")
    with pytest.raises(ConfigError, match=r"metadata.csv: line 3 has the split 'tset'"):
        find(pictures)


def test_lists_that_name_no_class_folders_are_refused_and_a_split_that_lists_nothing(pictures: Path) -> None:
    in_text_lists(pictures)
    (pictures / "test.txt").write_text("class5/0.png 5\n")
    with pytest.raises(
        ConfigError, match=r"test.txt: line 1 is 'class5/0.png 5', which is no class folder: .*test.csv"
    ):
        find(pictures)
    assert find_classes(pictures) is not None
    shutil.rmtree(pictures)
    in_tables(pictures)
    (pictures / "val.csv").write_text("filename,label\n")
    with pytest.raises(ConfigError, match=r"val.csv lists nothing: fill it, or take it away"):
        find(pictures)


@pytest.mark.parametrize("form", ["folders", "tables"])
def test_without_val_the_split_is_kept_and_said(form: str, pictures: Path) -> None:
    if form == "folders":
        in_folders(pictures, {"train": "train", "test": "test"})
    else:
        in_tables(pictures)
        (pictures / "val.csv").unlink()
    assert count(pictures) == expected(("train", "test"))
    given = "train, test" if form == "folders" else "train.csv, test.csv"
    assert look(pictures).origin == f"{given}; val: drawn from train's classes by dataset.split_seed"
    assert find_splits(pictures) is None


def test_a_split_that_is_not_understood_is_refused(pictures: Path) -> None:
    in_folders(pictures, {"train": "train", "val": "val", "test": "tset"})
    with pytest.raises(ConfigError, match="has train, val and, beside them, tset: not clear which classes are test"):
        find(pictures)
    shutil.rmtree(pictures)
    in_folders(pictures, {"train": "train"})
    with pytest.raises(ConfigError, match="has train and no test: add what is missing, or put all classes together"):
        find(pictures)
    shutil.rmtree(pictures)
    in_folders(pictures, {"train": "train", "val": "Train"})
    with pytest.raises(ConfigError, match=r"has (train and Train|Train and train): one of them must go"):
        find(pictures)
    shutil.rmtree(pictures)
    in_folders(pictures, {"train": "train", "test": "test"})
    (pictures / "val").mkdir()
    with pytest.raises(ConfigError, match=r"val has no classes: .*val has no pictures in class folders"):
        find(pictures)
    shutil.rmtree(pictures)
    put(pictures, "train/1.png", "test/1.png")
    with pytest.raises(ConfigError, match="has test, train with pictures, and no class folders in them"):
        find(pictures)
    shutil.rmtree(pictures)
    in_a_column(pictures)
    (pictures / "labels.csv").write_text("filename,label,split\n0_0.png,a,train\n1_0.png,b,tset\n")
    with pytest.raises(ConfigError, match=r"labels.csv: line 3 has the split 'tset': it must be train, val or test"):
        find(pictures)


def test_folders_beside_a_whole_split_are_named(pictures: Path) -> None:
    in_folders(pictures, {split: split for split in PARTS})
    put(pictures, "extra/class9/1.png")
    assert count(pictures) == expected()
    assert look(pictures).notes == ["folders beside the splits are not read: extra"]


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["Greek/c1/0.png", "Latin/c1/0.png", "Latin/c2/0.png"], {"Greek/c1": 1, "Latin/c1": 1, "Latin/c2": 1}),
        (["deep/Greek/c1/0.png", "deep/Latin/c2/0.png"], {"c1": 1, "c2": 1}),
        (["n01/images/0.png", "n02/images/0.png"], {"n01": 1, "n02": 1}),
        (["n01/0.png", "n02/0.png", "n02/1.png"], {"n01": 1, "n02": 2}),
        (["masks/0.png", "hats/0.png"], {"masks": 1, "hats": 1}),
        (["images/a/0.png", "images/b/0.png", "masks/a/0.png", "masks/b/0.png"], {"a": 1, "b": 1}),
    ],
)
def test_a_class_is_its_folder_or_where_names_repeat_its_path(
    names: list[str], found: dict[str, int], pictures: Path
) -> None:
    put(pictures, *names)
    assert count(pictures) == {None: found}


def test_archives_with_equal_names_inside_are_told_apart(pictures: Path) -> None:
    pictures.mkdir()
    for animal in ("cats", "dogs"):
        with zipfile.ZipFile(pictures / f"{animal}.zip", "w") as archive:
            archive.writestr(f"{animal}/breed0/0.png", encoded((1, 2, 3)))
    assert count(pictures) == {None: {"cats/breed0": 1, "dogs/breed0": 1}}
    assert find_classes(pictures / "cats.zip") is not None


def test_masks_and_loose_pictures_are_left_out_and_told(pictures: Path) -> None:
    put(pictures, "a/0.png", "a/masks/0.png", "b/images/0.png", "b/masks/0.png", "loose.png")
    assert count(pictures) == {None: {"a": 1, "b": 1}}
    assert look(pictures).notes == [
        "1 picture in no class folder, not read",
        "2 pictures in masks beside their classes' pictures, not read",
    ]


def test_pictures_in_a_folder_and_in_one_below_it_are_refused(pictures: Path) -> None:
    put(pictures, "a/0.png", "a/young/0.png", "b/0.png")
    with pytest.raises(ConfigError, match="pictures are in a and in a/young: it is not clear which of them"):
        find(pictures)
    shutil.rmtree(pictures)
    put(pictures, "a/images/0.png", "a/crops/0.png", "b/images/0.png", "b/crops/0.png")
    with pytest.raises(ConfigError, match=r"pictures are in (a|b)/images and in \1/crops: it is not clear which of"):
        find(pictures)


def test_files_that_are_not_read_are_counted_by_ending(pictures: Path) -> None:
    put(pictures, "a/0.jfif", "b/0.jp2")
    for name in ("a/1.heic", "b/1.HEIC", "b/2.npy", "b/readme.txt", "b/.hidden", "b/._7.png", "b/10017", "README"):
        write(pictures / name, b"")
    assert count(pictures) == {None: {"a": 1, "b": 1}}
    assert look(pictures).notes == ["files that are not read: 2 .heic, 1 hidden .png, 1 without an ending, 1 .npy"]


def test_a_picture_in_two_tables_or_under_two_labels_is_refused(pictures: Path) -> None:
    in_tables(pictures)
    with (pictures / "test.csv").open("a") as table:
        table.write("\n0_0.png,class0\n0_1.png,class0\n")
    with pytest.raises(
        ConfigError, match=r"2 pictures are listed in test.csv and train.csv, for example images/0_0.png"
    ):
        find(pictures)
    in_a_column(pictures)
    for split in PARTS:
        (pictures / f"{split}.csv").unlink()
    (pictures / "labels.csv").write_text("filename,label\n0_0.png,a\n0_0.png,a\n1_0.png,b\n1_0.png,c\n")
    with pytest.raises(
        ConfigError, match=r"1 picture is listed in labels.csv under two labels, for example images/1_0"
    ):
        find(pictures)


def test_classes_in_two_splits_are_told(pictures: Path) -> None:
    put(pictures, *classes("train/", range(3)), *classes("test/", range(2)))
    told = "2 classes in both train and test, for example class0: the test is not of new classes"
    assert look(pictures).notes == [told]


def test_tables_name_pictures_in_the_ways_that_scripts_write(pictures: Path) -> None:
    put(pictures, "a/1.png", "b/1.png", "c/2.png")
    for names in (
        ["a/1.png", "b/1.png", "2.png"],
        ["./a/1.png", "./b/1.png", "./c/2.png"],
        ["a\\1.png", "b\\1.png", "c\\2.png"],
        [str(pictures / name) for name in ("a/1.png", "b/1.png", "c/2.png")],
        ["101_Objects/a/1.png", "101_Objects/b/1.png", "101_Objects/c/2.png"],
    ):
        (pictures / "labels.csv").write_text(
            "\n".join(["file,class", *(f"{name},x{i}" for i, name in enumerate(names))])
        )
        assert count(pictures) == {None: {"x0": 1, "x1": 1, "x2": 1}}
    for wrong in ("1.png", "d/2.png", "z/a/3.png"):
        (pictures / "labels.csv").write_text(f"file,class\na/1.png,x\n{wrong},y\n")
        with pytest.raises(ConfigError, match=f"labels.csv lists 1 picture not found in .*, for example {wrong}: put"):
            find(pictures)


@pytest.mark.parametrize(
    "content",
    [
        "filename,label\na.png,cat\n",
        "\ufefffilename,label\r\na.png,cat\r\n",
        "FileName;Label\na.png;cat\n",
        "label\tfilename\ncat\ta.png\n",
        ' "filename" , "label"\na.png, cat\n\n\n',
        "\nid,class_name,image\n1,cat,a.png\n",
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "utf-16-le"])
def test_tables_are_read_in_the_usual_dialects(content: str, encoding: str) -> None:
    if encoding != "utf-8" and content.startswith("\ufeff"):
        return
    columns = Column("filename", ("filename", "image")), Column("label", ("label", "class_name"))
    assert [row.cells for row in Sheet.parse(content.encode(encoding), "t").read(*columns)] == [("a.png", "cat")]


def test_what_a_table_lacks_is_quoted_with_its_line() -> None:
    columns = Column("filename", ("filename",)), Column("label", ("label",))
    with pytest.raises(ConfigError, match="t: its first line must name the columns filename,label, and is 'name,kind'"):
        list(Sheet.parse(b"name,kind\na,b\n", "t").read(*columns))
    with pytest.raises(ConfigError, match="t: line 4 has no label"):
        list(Sheet.parse(b"filename,label\na,b\n\nc,\n", "t").read(*columns))
    with pytest.raises(ConfigError, match="t is empty"):
        Sheet.parse(b"\n\n", "t")


def test_links_within_the_folder_are_followed_and_none_that_leads_out(pictures: Path, tmp_path: Path) -> None:
    put(pictures, "all/0.png", "all/1.png", "b/0.png")
    (pictures / "a").mkdir()
    (pictures / "a" / "0.png").symlink_to(pictures / "all" / "0.png")
    (pictures / "c").symlink_to(pictures / "b", target_is_directory=True)
    assert count(pictures) == {None: {"a": 1, "all": 2, "b": 1, "c": 1}}
    (pictures / "b" / "up").symlink_to(pictures, target_is_directory=True)
    with pytest.raises(ConfigError, match="b/up is a link to a folder that it is in: remove it"):
        find(pictures)
    (pictures / "b" / "up").unlink()
    put(tmp_path, "elsewhere/0.png")
    (pictures / "b" / "1.png").symlink_to(tmp_path / "elsewhere" / "0.png")
    with pytest.raises(ConfigError, match=r"b/1.png is a link that leads out of"):
        find(pictures)


@pytest.mark.parametrize(
    ("kind", "black", "white"),
    [("float32", 0.0, 1.0), ("float32", 0.0, 255.0), ("int32", 0, 255), ("uint16", 0, 4095), ("uint16", 0, 65535),
     ("int32", -500, 1500)],
)  # fmt: skip
def test_deep_grey_pictures_are_scaled_by_the_range_of_all(
    kind: str, black: float, white: float, pictures: Path
) -> None:
    ramps = {"dark": np.linspace(black, (black + white) / 2, 16), "bright": np.linspace(black, white, 16)}
    for name, values in ramps.items():
        (pictures / name).mkdir(parents=True)
        values = values if kind == "float32" else values.round()
        Image.fromarray(values.reshape(4, 4).astype(kind)).save(pictures / name / "0.tif")
    found = dict(convert_all((Picture(pictures, f"{name}/0.tif") for name in ramps), Form(4, 1, "squeeze", "nearest")))
    for name, values in ramps.items():
        pixels = found[Picture(pictures, f"{name}/0.tif")]
        assert isinstance(pixels, bytes)
        wanted = 255 * (values.astype(kind).astype(float) - black) / (white - black)
        assert np.abs(np.frombuffer(pixels, np.uint8) - wanted).max() <= 1


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("above", ["", "all/"])
def test_a_class_folder_without_a_picture_is_told(form: str, above: str, pictures: Path) -> None:
    put(pictures, *(f"{above}{name}" for name in ("a/1.png", "a/masks/note.txt", "b/images/1.png", "b/images/2.png")))
    (pictures / above / "notes").mkdir()
    (pictures / above / "notes/about.txt").touch()
    for folder in ("c/images", "d", ".hidden"):
        (pictures / above / folder).mkdir(parents=True)
    (pictures / above / "d/1.heic").touch()
    place = pictures
    if form != "folder":
        place = Path(shutil.make_archive(str(pictures), form, pictures))
    found = find_given(place)
    assert found.empty == [f"{above}c", f"{above}d"]
    assert found.notes == ["files that are not read: 1 .heic"]
    assert "2 class folders without a picture, for example " + found.empty[0] in look(place).notes


def test_what_is_not_read_of_given_pictures_is_told(pictures: Path) -> None:
    put(pictures, "1.png", "more/2.png", "more/3.png")
    (pictures / "labels.csv").write_text("filename,label\nmore/2.png,a\n")
    found = find_given(pictures)
    assert {str(picture): label for picture, label in found.labels.items()} == {"1.png": None, "more/2.png": "a"}
    assert found.notes == ["1 picture without a label, not read, for example more/3.png"]
