"""Damaged or hostile files: one clear line each, and nothing left behind."""

import os
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from metarun.config.errors import ConfigError
from metarun.datasets.storage import archives
from tests.support.tiny_pictures import (
    encoded,
    images,
    packings,
    pieces,
    write,
    write_cached_pickles,
    write_folders,
    write_ravi,
    write_ravi_tars,
    write_zips,
)

pytestmark = pytest.mark.usefixtures("picture_cache")


def malicious(pictures: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {pictures}/harmed",)

    write_cached_pickles(pictures)
    write(pictures / "mini-imagenet-cache-train.pkl", pickle.dumps({"image_data": [], "class_dict": Evil()}))


def truncated(pictures: Path) -> None:
    write_ravi_tars(pictures)
    whole = (pictures / "images-val.tar.xz").read_bytes()
    write(pictures / "images-val.tar.xz", whole[: len(whole) // 2])


def web_page(pictures: Path) -> None:
    write_zips(pictures)
    write(pictures / "val.zip", b"<!DOCTYPE html><html>quota exceeded</html>")


def escaping_zip(pictures: Path) -> None:
    write_zips(pictures)
    with zipfile.ZipFile(pictures / "val.zip", "w") as archive:
        archive.writestr("../../evil.png", encoded((1, 2, 3)))


def linking_tar(pictures: Path) -> None:
    write_ravi_tars(pictures)
    with tarfile.open(pictures / "images-val.tar.xz", "w:xz") as archive:
        link = tarfile.TarInfo("images/evil.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)


def linking_folder(pictures: Path) -> None:
    write_folders(pictures)
    (pictures / "train" / "elsewhere").symlink_to("/etc")


def not_a_table(pictures: Path) -> None:
    write_ravi(pictures)
    write(pictures / "val.csv", b"a,b\n1,2\n")


def a_broken_link(pictures: Path) -> None:
    write_folders(pictures)
    (pictures / "train" / "gone.png").symlink_to("nowhere.png")


def what_is_no_tar(pictures: Path) -> None:
    write_ravi_tars(pictures)
    write(pictures / "images-val.tar.xz", b"no tar" * 500)


def a_class_short(pictures: Path) -> None:
    write_folders(pictures)
    for piece in pieces():
        if piece.label == "n01000000":
            (pictures / "val" / piece.label / piece.name).unlink()


WRONG: dict[Callable[[Path], None], str] = {
    malicious: r"mini-imagenet-cache-train.pkl cannot be used \(it asks for posix.system, which may run anything\)",
    truncated: r"images-val.tar.xz is damaged or cut short \(.*\): replace it by a whole copy",
    web_page: r"val.zip is a web page, not an archive: replace it by a whole copy",
    escaping_zip: r"val.zip holds '../../evil.png', a path that leads out of it",
    linking_tar: r"images-val.tar.xz holds images/evil.png, a link to /etc/passwd",
    linking_folder: r"elsewhere is a link that leads out of .*: put the files themselves there",
    not_a_table: r"val.csv: its first line must name the columns filename,label, and is ",
    a_broken_link: r"train/gone.png cannot be read \(No such file or directory\)",
    what_is_no_tar: r"images-val.tar.xz is damaged or cut short \(file could not be opened successfully\): replace it",
    a_class_short: r"is not whole, val has 1 class, not 2: its pictures are ImageNet's",
}


@pytest.mark.parametrize("spoil", WRONG)
def test_what_is_wrong_is_said_in_one_line_and_leaves_nothing(
    spoil: Callable[[Path], None], pictures: Path, picture_cache: Path
) -> None:
    spoil(pictures)
    with pytest.raises(ConfigError, match=WRONG[spoil]) as error:
        images("miniimagenet", pictures).prepare()
    assert "\n" not in str(error.value)
    assert packings(picture_cache) == []
    assert not (pictures / "harmed").exists()


def test_wanted_files_come_in_the_order_of_a_walk_whatever_lies_beside_them(pictures: Path) -> None:
    """The packed pictures' hash, by which runs know their data, depends on it."""
    names = ["b/1", "b/c/1", "a-1", "a/2", "a/b/9", "z", "b/c.d/1", "a.b"]
    for name in names:
        write(pictures / name, name.encode())
    walked = archives.names(pictures)
    (pictures / "beside").symlink_to("/etc")
    found = list(archives.contents(pictures, names))
    assert sorted(name for name, _ in found) == walked
    assert all(content == name.encode() for name, content in found)
    order = [Path(parent, file) for parent, folders, files in os.walk(pictures) if folders.sort() is None
             for file in sorted(files)]  # fmt: skip
    assert [pictures / name for name, _ in found] == order


def test_nothing_there_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing at .*mini-imagenet: its pictures are ImageNet's: .* dataset.path"):
        images("miniimagenet", None, data_dir=tmp_path).prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty has no pictures in class folders"):
        images("folder", tmp_path / "empty").prepare()
