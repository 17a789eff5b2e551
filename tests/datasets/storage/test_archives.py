"""Picture sets: what is wrong is one clear line that leaves nothing behind, and no packing is lost or half done."""

import json
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from metarun.config.errors import ConfigError
from metarun.datasets.storage import packing
from metarun.datasets.storage.packing import Form, brought
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


def a_class_short(pictures: Path) -> None:
    write_folders(pictures)
    for piece in pieces():
        if piece.label == "n01000000":
            (pictures / "val" / piece.label / piece.name).unlink()


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
def test_what_is_wrong_is_said_in_one_line_and_leaves_nothing(spoil, pictures: Path, picture_cache: Path) -> None:
    spoil(pictures)
    with pytest.raises(ConfigError, match=WRONG[spoil]) as error:
        images("miniimagenet", pictures).prepare()
    assert "\n" not in str(error.value)
    assert packings(picture_cache) == []
    assert not (pictures / "harmed").exists()


def test_nothing_there_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nothing at .*mini-imagenet: its pictures are ImageNet's: .* dataset.path"):
        images("miniimagenet", None, data_dir=tmp_path).prepare()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty has no pictures in class folders"):
        images("folder", tmp_path / "empty").prepare()


# Packing


def test_a_killed_packing_is_gone_on_with(pictures: Path, picture_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_folders(pictures)
    images("folder", pictures).prepare()
    whole = packings(picture_cache)[0]
    files = {name: (whole / name).read_bytes() for name in ("pictures.u8", "labels.i32", "names.txt")}
    index = json.loads((whole / "index.json").read_text())
    subprocess.run(["rm", "-r", str(picture_cache)], check=True)

    monkeypatch.setattr(packing, "BLOCK", 5)
    seen = []

    def killed(content: bytes, form: Form) -> bytes | str:
        seen.append(content)
        if len(seen) > 13:
            raise KeyboardInterrupt
        return brought(content, form)

    monkeypatch.setattr(packing, "brought", killed)
    with pytest.raises(KeyboardInterrupt):
        images("folder", pictures).prepare()
    (scratch,) = packings(picture_cache)
    assert json.loads((scratch / "progress.json").read_text())["seen"] == 10
    again = []
    monkeypatch.setattr(packing, "brought", lambda content, form: again.append(content) or brought(content, form))
    images("folder", pictures).prepare()
    assert len(again) == len(pieces()) - 10
    (packed,) = packings(picture_cache)
    assert files == {name: (packed / name).read_bytes() for name in files}
    assert index == json.loads((packed / "index.json").read_text())


def test_a_damaged_packing_is_noticed(pictures: Path, picture_cache: Path) -> None:
    write_folders(pictures)
    images("folder", pictures).prepare()
    with (packings(picture_cache)[0] / "pictures.u8").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(
        ConfigError, match=r"are damaged \(a file has another length than it should\): delete that folder"
    ):
        images("folder", pictures).prepare()


def test_a_full_disk_is_one_line_and_leaves_nothing(pictures: Path, picture_cache: Path) -> None:
    """A limit on the size of files stands in for it."""
    for i in range(40):
        write(pictures / "a" / f"{i}.png", encoded((i, i, i)))
    program = (
        "import resource, sys; from pathlib import Path; from tests.support.tiny_pictures import images\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
        "from metarun.config.errors import ConfigError\n"
        "try: images('folder', Path(sys.argv[1])).prepare()\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(pictures)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert done.stdout.startswith(
        f"the cache {picture_cache}/folder cannot be written (File too large): set METARUN_CACHE"
    ), done
    assert packings(picture_cache) == []
