"""How Omniglot's files are found, judged, packed and downloaded, on a tiny generated copy."""

import hashlib
import io
import multiprocessing
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metarun.config.errors import ConfigError
from metarun.datasets import omniglot
from metarun.datasets.omniglot import Omniglot
from metarun.datasets.omniglot_files import PARTS
from tests.support.tiny_omniglot import (
    TINY,
    dataset,
    members,
    png,
    tiny_parts,
    write_folder,
    write_zip,
    write_zips,
)
from tests.support.tiny_server import Server, serve


def fails(data: Omniglot, match: str) -> str:
    """The message of `prepare`, which must be one line."""
    with pytest.raises(ConfigError, match=match) as error:
        data.prepare()
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


# Layouts


def deeper_zips(root: Path) -> None:
    """Zipped again by someone: another folder around it, and macOS' shadow files."""
    for part in TINY:
        shadows = {f"__MACOSX/{name.replace('/0', '/._0')}": b"x" for name in members(part)}
        files = {f"omniglot-master/python/{name}": content for name, content in members(part).items()}
        write_zip(root / f"{part}.zip", shadows | files)


def backslash_zips(root: Path) -> None:
    for part in TINY:
        write_zip(root / f"{part}.zip", {n.replace("/", "\\"): c for n, c in members(part).items()})


def folders(root: Path) -> None:
    for part in TINY:
        write_folder(root, members(part))


def doubled_folders(root: Path) -> None:
    """images_background/images_background/..., as some unpackers leave it."""
    for part in TINY:
        write_folder(root / part, members(part))


def zip_and_folder(root: Path) -> None:
    write_zip(root / "images_background.zip", members("images_background"))
    write_folder(root, members("images_evaluation"))


@pytest.mark.parametrize("below", ["", "omniglot-py"])
@pytest.mark.parametrize("layout", [write_zips, deeper_zips, backslash_zips, folders, doubled_folders, zip_and_folder])
def test_every_layout_gives_the_same_table(
    tiny: None, tmp_path: Path, layout: Callable[[Path], None], below: str
) -> None:
    layout(tmp_path / "data" / below)
    data = dataset(tmp_path / "data")
    images, index = data.packed
    assert images.dtype == torch.uint8
    assert images.shape == (6, 20, 1, 28, 28)
    assert (index["alphabets"], index["images"]) == (3, 120)
    assert index["characters"][0] == "images_background/Armenian/character01"
    expected = Image.open(io.BytesIO(png(5, 7))).convert("L").resize((28, 28), Image.Resampling.LANCZOS)
    assert (images[4, 6, 0].numpy() == np.asarray(expected)).all()
    assert hashlib.sha256(images.numpy().tobytes()).hexdigest() == index["sha256"]


def test_data_dir_is_where_the_files_are_when_path_is_null(root: Path) -> None:
    root.rename(root.with_name("omniglot"))
    data = dataset(root, path=None, data_dir=root.parent)
    data.prepare()
    assert str(root.with_name("omniglot") / "images_background.zip") in data.describe()


def test_changed_files_are_packed_anew(root: Path) -> None:
    before = dataset(root).identity()["sha256"]
    files = members("images_evaluation")
    files["images_evaluation/Kannada/character01/0005_01.png"] = png(1, 1)
    write_zip(root / "images_evaluation.zip", files)
    assert dataset(root).identity()["sha256"] != before


# Damage


def test_a_web_page_saved_as_zip(root: Path) -> None:
    (root / "images_evaluation.zip").write_text("<!DOCTYPE html><html>Quota exceeded</html>")
    message = fails(dataset(root), r"images_evaluation\.zip is a web page, not an archive")
    assert "delete it to have it downloaded" in message
    assert "unusable: " in dataset(root).describe()


def test_a_truncated_zip(root: Path) -> None:
    whole = (root / "images_background.zip").read_bytes()
    (root / "images_background.zip").write_bytes(whole[: len(whole) // 2])
    fails(dataset(root), r"images_background\.zip is damaged or cut short")


def test_a_zip_with_a_flipped_byte(root: Path) -> None:
    path = root / "images_background.zip"
    content = bytearray(path.read_bytes())
    content[200] ^= 0xFF
    path.write_bytes(content)
    fails(dataset(root), r"images_background\.zip is damaged or cut short \(images_background/Armenian/.+\)")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"not a picture", "it is not an image"),
        (png(1, 1)[:60], "truncated|broken|incomplete"),
        (png(1, 1, side=28), "it is 28x28 pixels, not 105x105"),
    ],
)
def test_an_image_that_cannot_be_used(root: Path, cache: Path, content: bytes, reason: str) -> None:
    files = members("images_background")
    files["images_background/Latin/character02/0004_11.png"] = content
    write_zip(root / "images_background.zip", files)
    fails(dataset(root), rf"Latin/character02/0004_11\.png cannot be used \(.*({reason})")
    assert not list(cache.rglob("images.npy"))


def test_a_missing_class(root: Path) -> None:
    files = {name: c for name, c in members("images_background").items() if "Latin/character02" not in name}
    write_zip(root / "images_background.zip", files)
    fails(dataset(root), r"images_background\.zip has 3 characters of 2 alphabets, not 4 of 2")


def test_a_missing_drawing(root: Path) -> None:
    files = members("images_evaluation")
    del files["images_evaluation/Kannada/character02/0006_20.png"]
    write_zip(root / "images_evaluation.zip", files)
    fails(dataset(root), r"has 19 images of images_evaluation/Kannada/character02, not 20")


def test_an_empty_folder(root: Path) -> None:
    (root / "images_background.zip").unlink()
    (root / "images_background").mkdir()
    fails(dataset(root), "images_background has 0 characters of 0 alphabets")


@pytest.mark.parametrize("name", ["../../escaped.png", "/escaped.png"])
def test_members_that_point_outside_are_refused(root: Path, tmp_path: Path, name: str) -> None:
    write_zip(root / "images_background.zip", members("images_background") | {name: b"x"})
    fails(dataset(root), "a path that leads out of it")
    assert not list(tmp_path.rglob("escaped.png"))


def test_a_damaged_cache_names_itself(root: Path, cache: Path) -> None:
    dataset(root).prepare()
    next(cache.rglob("images.npy")).write_bytes(b"")
    fails(dataset(root), r"the packed table .+ is damaged .+: delete that folder")


# The cache


def prepare_tiny(path: str, hashes: "multiprocessing.Queue[str]") -> None:
    PARTS.update(tiny_parts())
    hashes.put(dataset(Path(path)).identity()["sha256"])


@pytest.mark.integration
def test_two_processes_preparing_at_once_give_one_complete_table(root: Path, cache: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    hashes = spawn.Queue()
    processes = [spawn.Process(target=prepare_tiny, args=(str(root), hashes)) for _ in range(2)]
    for process in processes:
        process.start()
    found = {hashes.get(timeout=120) for _ in processes}
    for process in processes:
        process.join()
    assert found == {dataset(root).identity()["sha256"]}
    assert len(list(cache.rglob("images.npy"))) == 1
    assert not list(cache.rglob("*.partial"))


def test_an_unwritable_cache(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in place of a folder")
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file"))
    fails(dataset(root), "the cache .+ cannot be written .+ METARUN_CACHE")


def test_nothing_is_written_beside_the_data(root: Path) -> None:
    before = sorted(root.rglob("*"))
    dataset(root).prepare()
    assert sorted(root.rglob("*")) == before


# Download


@pytest.fixture
def offer(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The tiny copy, with its true md5s, offered instead of the official one."""
    with serve() as server:
        monkeypatch.setattr(omniglot, "URL", server.url)
        for part, entry in list(PARTS.items()):
            content = write_zip(tmp_path / "offer" / f"{part}.zip", members(part)).read_bytes()
            server.files[f"{part}.zip"] = content
            monkeypatch.setitem(PARTS, part, entry._replace(md5=hashlib.md5(content).hexdigest()))
        yield server


def test_missing_files_are_downloaded_and_used(offer: Server, tmp_path: Path) -> None:
    data = dataset(tmp_path / "data")
    assert f"the first run downloads what is missing from {offer.url}" in data.describe()
    assert not (tmp_path / "data").exists()  # describing downloads nothing
    data.prepare()
    for part in TINY:
        name = f"{part}.zip"
        assert (tmp_path / "data" / name).read_bytes() == offer.files[name]
    assert "train: 2 characters" in data.describe()


def test_only_the_missing_part_is_downloaded(offer: Server, root: Path) -> None:
    (root / "images_evaluation.zip").unlink()
    dataset(root).prepare()
    assert (root / "images_evaluation.zip").exists()
    assert offer.asked == ["images_evaluation.zip"]


def test_a_data_folder_that_cannot_be_written(offer: Server, tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file in place of a folder")
    fails(dataset(tmp_path / "data"), r"cannot save .+ as .+ \(.+\): make that folder writable")
