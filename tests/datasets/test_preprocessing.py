"""Pictures as files, in the form that a trained network reads."""

import io
import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.config.errors import ConfigError
from metarun.datasets.omniglot_files import read_image
from metarun.datasets.preprocessing import Numbers, Pictures, Strings
from tests.support.tiny_omniglot import png
from tests.support.tiny_pictures import encoded, images, write

COLOURS = {"a/1.png": (250, 0, 0), "a/2.png": (200, 0, 0), "b/x.png": (0, 9, 0)}


def build(**changes: object) -> Pictures:
    values = {"size": 4, "channels": 3, "resize": "crop", "filter": "bilinear"} | changes
    return Pictures(**values)  # type: ignore[arg-type]


def write_folders(root: Path) -> Path:
    for name, colour in COLOURS.items():
        write(root / name, encoded(colour))
    write(root / "notes.txt", b"no picture")
    return root


def write_zip(root: Path) -> Path:
    root.mkdir()
    with zipfile.ZipFile(root / "all.zip", "w") as archive:
        for name, colour in COLOURS.items():
            archive.writestr(name, encoded(colour))
    return root / "all.zip"


def write_table(root: Path) -> Path:
    for name, colour in COLOURS.items():
        write(root / "files" / name, encoded(colour))
    (root / "labels.csv").write_text("filename,label\n" + "".join(f"files/{name},{name[0]}\n" for name in COLOURS))
    return root


@pytest.mark.parametrize("arrange", [write_folders, write_zip, write_table])
def test_labelled_pictures_come_in_the_order_of_their_names(pictures: Path, arrange: Callable[[Path], Path]) -> None:
    found = build().read(arrange(pictures))
    assert [name.removeprefix("files/") for name in found.names] == list(COLOURS)
    assert found.labels == ["a", "a", "b"]
    expected = torch.tensor(list(COLOURS.values()), dtype=torch.uint8)[:, :, None, None].expand(3, 3, 4, 4)
    assert isinstance(found.items, torch.Tensor)
    assert torch.equal(found.items, expected)


def test_an_archive_is_labelled_as_the_folder_that_it_was_made_of(pictures: Path) -> None:
    for name in ("a/images/1.png", "b/images/1.png"):
        write(pictures / name, encoded((1, 2, 3)))
    with zipfile.ZipFile(pictures.with_suffix(".zip"), "w") as archive:
        for file in sorted(pictures.rglob("*.png")):
            archive.write(file, file.relative_to(pictures))
    assert build().read(pictures).labels == build().read(pictures.with_suffix(".zip")).labels == ["a", "b"]


def test_a_single_picture_may_lie_beside_anything_and_be_a_link(pictures: Path, tmp_path: Path) -> None:
    write(pictures / "1.png", encoded((1, 2, 3)))
    (pictures / "2.png").symlink_to("/dev/null")
    (tmp_path / "link.png").symlink_to(pictures / "1.png")
    assert build().read(pictures / "1.png").labels == build().read(tmp_path / "link.png").labels == [None]
    with pytest.raises(ConfigError, match=r"1 picture cannot be used, for example .*: it is not a picture"):
        build().read(Path("/etc/passwd"))


def test_names_that_are_no_text_are_shown_by_their_codes(pictures: Path) -> None:
    write(pictures / "a\x1b" / os.fsdecode(b"\xff\xfe\xe2\x80\xae.png"), encoded((1, 2, 3)))
    found = build().read(pictures)
    assert (found.names, found.labels) == ([r"a\x1b/\udcff\udcfe\u202e.png"], [r"a\x1b"])


def test_pictures_without_a_class_folder_have_no_label(pictures: Path) -> None:
    for name in ("2.png", "1.png", "a/3.png"):
        write(pictures / name, encoded((1, 2, 3)))
    assert build().read(pictures)[:3:2] == (["1.png", "2.png", "a/3.png"], [None, None, "a"])
    single = build().read(pictures / "1.png")
    assert (single.names, single.labels) == (["1.png"], [None])


def test_they_are_what_a_dataset_makes_of_the_same_files(picture_cache: Path, pictures: Path) -> None:
    """Of colours, grey and transparent ones, larger and smaller than wanted, wide and high."""
    rng = np.random.default_rng(0)
    for i, (mode, size) in enumerate([("RGB", (9, 5)), ("L", (3, 8)), ("RGBA", (12, 12))]):
        pixels = rng.integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8).squeeze()
        (pictures / "some").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels, mode).save(pictures / "some" / f"{i}.png")
    dataset = images("folder", pictures)
    found = Pictures(**{k: v for k, v in dataset.preprocessing().items() if k != "kind"}).read(pictures)
    assert isinstance(found.items, torch.Tensor)
    assert torch.equal(found.items, dataset.packed.pictures)


def test_drawings_have_the_ink_of_training_whatever_the_paper(pictures: Path) -> None:
    for ink in (0, 1):
        form = build(size=28, channels=1, resize="squeeze", filter="lanczos", ink=ink)
        grey = read_image(pictures, "omniglot's", png(1, 2), size=28, filter="lanczos")  # a dark stroke on white
        expected = torch.from_numpy(255 - grey if ink else grey)
        for paper in (Image.open(io.BytesIO(png(1, 2))), Image.fromarray(255 - grey)):
            assert torch.equal(form([paper])[0, 0], expected / 255)


def test_pictures_may_be_files_or_what_pillow_opens(pictures: Path) -> None:
    write_folders(pictures)
    form, files = build(mean=[0.5] * 3, std=[0.1] * 3), [pictures / name for name in COLOURS]
    expected = form(form.read(pictures).items)
    assert torch.equal(form(files), expected)
    assert torch.equal(form([str(file) for file in files]), expected)
    assert torch.equal(form([Image.open(io.BytesIO(encoded(colour))) for colour in COLOURS.values()]), expected)


def test_what_is_no_picture_is_named(pictures: Path) -> None:
    form = build()
    with pytest.raises(ConfigError, match="there is no file or folder"):
        form.read(pictures)
    write(pictures / "notes.txt", b"nothing")
    with pytest.raises(ConfigError, match="has no pictures: give"):
        form.read(pictures)
    write(pictures / "a" / "whole.png", encoded((1, 2, 3)))
    write(pictures / "a" / "torn.png", b"torn")
    with pytest.raises(ConfigError, match=re.escape("1 picture cannot be used, for example a/torn.png")):
        form.read(pictures)
    with pytest.raises(ConfigError, match=r"the picture .*gone.png cannot be read \(No such file"):
        form([pictures / "gone.png"])


def test_texts_and_their_labels_are_columns_of_a_table(tmp_path: Path) -> None:
    file, form = tmp_path / "texts.csv", Strings(words=True, characters=[3], width=8)
    file.write_text('label;Text\ngreet;"hello; you"\nleave;bye\n', encoding="utf-8")
    named = form.read(file)
    assert named[:3] == (["hello; you", "bye"], ["hello; you", "bye"], ["greet", "leave"])
    assert torch.equal(form(named.items), form(["hello; you", "bye"]))
    file.write_text("smiles\nCCO\n", encoding="utf-8")
    assert form.read(file)[:3] == (["CCO"], ["CCO"], [None])
    for reader, header in ((form, "smiles,label"), (Numbers(), "x,y")):
        file.write_text(header)
        with pytest.raises(ConfigError, match=r"texts\.csv has a header and no rows"):
            reader.read(file)
    file.write_text("name\nCCO\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="must name the columns text, and is 'name'"):
        form.read(file)
    with pytest.raises(ConfigError, match=r"the table .* cannot be read \(No such file"):
        form.read(tmp_path / "gone.csv")
    with pytest.raises(ConfigError, match=r"is a folder: what is read here is a table \(.csv, "):
        form.read(tmp_path)


def test_the_points_of_a_regression_are_columns_of_a_table(tmp_path: Path) -> None:
    file = tmp_path / "points.csv"
    file.write_text("x1,y,x2\n1,-3,2\n0.5,4,1e3\n", encoding="utf-8")
    named = Numbers().read(file)
    np.testing.assert_array_equal(np.asarray(named.items), [[1, 2], [0.5, 1000]])
    assert named.labels == [[-3], [4]]
    file.write_text("x10,y,x2\n10,-3,2\n", encoding="utf-8")  # by their numbers: tables of one task agree
    np.testing.assert_array_equal(np.asarray(Numbers().read(file).items), [[2, 10]])
    file.write_text("x\n1\n", encoding="utf-8")
    assert Numbers().read(file).labels == [None]
    file.write_text("x,y\n1,none\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2: y is 'none', which is no number"):
        Numbers().read(file)


def test_measured_molecules_have_numbers_as_labels(tmp_path: Path) -> None:
    file, form = tmp_path / "molecules.csv", Strings(words=False, characters=[2], width=8, measured=True)
    file.write_text("SMILES,value\nCCO,6.5\nCN,-1e2\n", encoding="utf-8")
    assert form.read(file).labels == [[6.5], [-100.0]]
    file.write_text("SMILES\nCCO\n", encoding="utf-8")
    assert form.read(file).labels == [None]
    file.write_text("SMILES,value\nCCO,inf\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="line 2: value is inf, which is no finite number"):
        form.read(file)


def test_features_and_their_labels_are_arrays_of_a_file(tmp_path: Path) -> None:
    file, features = tmp_path / "features.npz", np.arange(6.0).reshape(3, 2)
    np.savez(file, embeddings=features, labels=[3, 1, 3], files=["a", "b", "c"])
    named = Numbers().read(file)
    assert (named.names, named.labels) == (["a", "b", "c"], [3, 1, 3])
    np.testing.assert_array_equal(np.asarray(named.items), features)
    np.savez(file, x=features)
    assert Numbers().read(file)[:3:2] == (["0", "1", "2"], [None] * 3)
