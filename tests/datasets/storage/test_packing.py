"""Packings of pictures: whole or absent, equal however they were made, and checked when they are read."""

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from metarun.config.errors import ConfigError
from metarun.datasets.storage.packing import Packed
from tests.support.tiny_pictures import encoded, images, packings, pieces, write, write_folders

pytestmark = pytest.mark.usefixtures("picture_cache")
ROOT = Path(__file__).parents[3]

DIE_WHILE_PACKING = """
import os, signal, sys
from pathlib import Path
from metarun.datasets.storage import packing
from tests.support.tiny_pictures import images
convert_all = packing.convert_all
def convert_and_die(*asked):
    for number, converted in enumerate(convert_all(*asked)):
        if number > 13:
            os.kill(os.getpid(), signal.SIGKILL)
        yield converted
packing.convert_all, packing.BLOCK = convert_and_die, 5
images("folder", Path(sys.argv[1])).prepare()
"""

PACK_ON_A_FULL_DISK = """
import resource, sys
from pathlib import Path
from metarun.config.errors import ConfigError
from tests.support.tiny_pictures import images
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
try:
    images("folder", Path(sys.argv[1])).prepare()
except ConfigError as error:
    print(error)
"""


def run(program: str, pictures: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", program, str(pictures)], capture_output=True, text=True, cwd=ROOT)


def test_the_order_of_a_packing_is_that_of_the_files(pictures: Path, picture_cache: Path) -> None:
    write_folders(pictures)
    images("folder", pictures).prepare()
    (folder,) = packings(picture_cache)
    packed = Packed.load(folder)
    assert packed.names() == sorted(f"{p.split}/{p.label}/{p.name}" for p in pieces())
    assert packed.sizes() == [4] * 7
    assert sorted(path.name for path in folder.iterdir()) == ["index.json", "labels.i32", "names.txt", "pictures.u8"]


@pytest.mark.integration
def test_a_killed_packing_is_made_again(pictures: Path, picture_cache: Path) -> None:
    write_folders(pictures)
    killed = run(DIE_WHILE_PACKING, pictures)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert [path.suffix for path in packings(picture_cache)] == [".partial"]
    assert "not packed yet" in images("folder", pictures).describe()
    images("folder", pictures).prepare()
    (folder,) = packings(picture_cache)
    assert not folder.suffix
    interrupted = {path.name: path.read_bytes() for path in folder.iterdir()}
    shutil.rmtree(picture_cache)
    images("folder", pictures).prepare()
    (folder,) = packings(picture_cache)
    assert interrupted == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_damaged_packing_is_noticed(pictures: Path, picture_cache: Path) -> None:
    write_folders(pictures)
    images("folder", pictures).prepare()
    with (packings(picture_cache)[0] / "pictures.u8").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(
        ConfigError, match=r"are damaged \(a file has another length than it should\): delete that folder"
    ):
        images("folder", pictures).prepare()


def test_pictures_of_which_none_can_be_used_are_refused_with_the_reason(pictures: Path, picture_cache: Path) -> None:
    for i in range(5):
        write(pictures / "a" / f"{i}.png", b"no picture")
    with pytest.raises(
        ConfigError, match=r"none of 5 pictures can be used, for example a/0.png: it is not a picture; "
    ):
        images("folder", pictures).prepare()
    assert packings(picture_cache) == []


@pytest.mark.integration
def test_a_full_disk_is_one_line_and_leaves_nothing(pictures: Path, picture_cache: Path) -> None:
    """A limit on the size of files stands in for it."""
    for i in range(40):
        write(pictures / "a" / f"{i}.png", encoded((i, i, i)))
    done = run(PACK_ON_A_FULL_DISK, pictures)
    assert done.stdout.startswith(
        f"the cache {picture_cache}/folder cannot be written (File too large): set METARUN_CACHE"
    ), done
    assert packings(picture_cache) == []
