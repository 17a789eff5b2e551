"""The cache: a folder is whole or absent, is made once, and a clear error says if it cannot be written."""

import multiprocessing
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from metarun.config.errors import ConfigError
from metarun.datasets.storage.cache import cache_dir, ensure

Sizes = multiprocessing.Queue  # of what processes found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_slowly(folder: Path) -> None:
    """Append a line to a log, and take long enough for others to come in between."""
    with (cache_dir() / "runs.txt").open("a") as log:
        log.write("made\n")
    (folder / "first").write_text("1")
    time.sleep(0.1)
    (folder / "second").write_text("2")


def ensure_and_count(sizes: "Sizes[int]") -> None:
    sizes.put(len(list(ensure("table", write_slowly).iterdir())))


def write_whole(folder: Path) -> None:
    (folder / "whole").write_text("1")


def write_half_and_die(folder: Path) -> None:
    (folder / "half").write_text("1")
    os.kill(os.getpid(), signal.SIGKILL)


def ensure_and_die() -> None:
    ensure("table", write_half_and_die)


def test_a_folder_is_made_once_and_found_again(cache: Path) -> None:
    first = ensure("group/table", write_whole)
    again = ensure("group/table", lambda folder: pytest.fail("made twice"))
    assert first == again == cache / "group" / "table"
    assert (again / "whole").read_text() == "1"


def test_threads_at_once_share_one_complete_folder(cache: Path) -> None:
    cache.mkdir()
    with ThreadPoolExecutor(4) as pool:
        folders = list(pool.map(lambda _: ensure("table", write_slowly), range(4)))
    assert [len(list(folder.iterdir())) for folder in folders] == [2] * 4
    assert (cache / "runs.txt").read_text() == "made\n"


@pytest.mark.integration
def test_two_processes_at_once_share_one_complete_folder(cache: Path) -> None:
    cache.mkdir()
    spawn = multiprocessing.get_context("spawn")
    sizes = spawn.Queue()
    processes = [spawn.Process(target=ensure_and_count, args=(sizes,)) for _ in range(2)]
    for process in processes:
        process.start()
    assert [sizes.get(timeout=60) for _ in processes] == [2, 2]
    for process in processes:
        process.join()
    assert (cache / "runs.txt").read_text() == "made\n"


@pytest.mark.integration
def test_what_a_killed_process_left_is_made_again(cache: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=ensure_and_die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert not (cache / "table").exists()
    target = ensure("table", write_whole)
    assert [path.name for path in target.iterdir()] == ["whole"]
    assert sorted(path.name for path in cache.iterdir()) == ["table", "table.lock"]


@pytest.mark.parametrize("error", [ConfigError("the source is damaged"), KeyboardInterrupt()])
def test_a_failed_or_interrupted_fill_leaves_nothing_behind(error: BaseException, cache: Path) -> None:
    def break_off(folder: Path) -> None:
        (folder / "half").write_text("1")
        raise error

    with pytest.raises(type(error)) as raised:
        ensure("table", break_off)
    assert raised.value is error
    assert [path.name for path in cache.iterdir()] == ["table.lock"]


def test_what_a_killed_run_left_is_not_kept(cache: Path) -> None:
    (cache / ".table.partial").mkdir(parents=True)
    (cache / ".table.partial" / "half").write_text("1")
    target = ensure("table", write_whole)
    assert [path.name for path in target.iterdir()] == ["whole"]


@pytest.mark.parametrize("below", ["", "deeper/still"])
def test_an_unwritable_cache_is_a_config_error(below: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in place of a folder")  # root may write into any folder, not into a file
    monkeypatch.setenv("METARUN_CACHE", str(tmp_path / "file" / below))
    with pytest.raises(ConfigError, match=r"cannot be written \(.+\): set METARUN_CACHE") as error:
        ensure("table", lambda folder: None)
    assert "\n" not in str(error.value)


def test_a_full_disk_is_a_config_error() -> None:
    def fill_disk(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(ConfigError, match=r"cannot be written \(No space left on device\)"):
        ensure("table", fill_disk)


def test_other_errors_of_fill_are_not_blamed_on_the_cache(tmp_path: Path) -> None:
    def read_nowhere(folder: Path) -> None:
        (tmp_path / "nowhere").read_bytes()

    with pytest.raises(FileNotFoundError):
        ensure("table", read_nowhere)


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
