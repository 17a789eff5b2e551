"""The cache: whole or not at all, once, and a clear word where it cannot be written."""

import multiprocessing
import time
from pathlib import Path

import pytest

from metarun.config.errors import ConfigError
from metarun.datasets.storage.cache import cache_dir, prepared


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_slowly(folder: Path) -> None:
    """Leaves one line for every time it ran, and takes long enough for another process to come in between."""
    with (cache_dir() / "runs.txt").open("a") as log:
        log.write("made\n")
    (folder / "first").write_text("1")
    time.sleep(0.5)
    (folder / "second").write_text("2")


def prepare_and_count(files: multiprocessing.Queue) -> None:
    files.put(len(list(prepared("table", write_slowly).iterdir())))


def test_a_folder_is_made_once_and_found_again(cache) -> None:
    first = prepared("group/table", lambda folder: (folder / "x").write_text("1"))
    again = prepared("group/table", lambda folder: pytest.fail("made twice"))
    assert first == again == cache / "group" / "table"
    assert (again / "x").read_text() == "1"


def test_two_processes_at_once_share_one_complete_folder(cache) -> None:
    cache.mkdir()
    spawn = multiprocessing.get_context("spawn")
    files = spawn.Queue()
    processes = [spawn.Process(target=prepare_and_count, args=(files,)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [files.get(timeout=60) for _ in processes] == [2, 2]
    for process in processes:
        process.join()
    assert (cache / "runs.txt").read_text() == "made\n"


def test_a_failed_make_leaves_nothing_behind(cache) -> None:
    def broken(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise ConfigError("the source is damaged")

    with pytest.raises(ConfigError, match="the source is damaged"):
        prepared("table", broken)
    assert [path.name for path in cache.iterdir()] == ["table.lock"]


def test_what_a_killed_run_left_is_not_kept(cache) -> None:
    (cache / ".table.partial").mkdir(parents=True)
    (cache / ".table.partial" / "half").write_text("1")
    target = prepared("table", lambda folder: (folder / "whole").write_text("1"))
    assert [path.name for path in target.iterdir()] == ["whole"]


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_unwritable_cache_is_a_config_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, below) -> None:
    (tmp_path / "file").write_text("in place of a folder")  # root may write into any folder, not into a file
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(ConfigError, match=r"cannot be written \(.+\): set METARUN_CACHE") as error:
        prepared("table", lambda folder: None)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_a_config_error() -> None:
    def full(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
        prepared("table", full)


def test_other_errors_of_make_are_not_blamed_on_the_cache(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        prepared("table", lambda folder: (tmp_path / "nowhere").read_bytes())


def test_the_cache_folder_is_absolute_and_knows_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("METARUN_CACHE", "~/mine")
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("METARUN_CACHE", "mine")
    assert cache_dir() == tmp_path / "mine"
    monkeypatch.delenv("METARUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    assert cache_dir() == tmp_path / "user" / "metarun"
