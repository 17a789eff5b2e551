"""Downloads from a server in this process: whole, broken, refused, or not what was wanted."""

import hashlib
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from metarun.config.errors import ConfigError
from metarun.datasets.storage.download import RETRIES, download
from tests.support.tiny_server import Server, serve

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # no waiting before another attempt
    with serve() as server:
        server.files["data.zip"] = CONTENT
        yield server


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "new" / "data.zip"


def fetch(server: Server, target: Path) -> None:
    download(f"{server.url}/data.zip", target, MD5)


def left(target: Path) -> list[str]:
    """The files in the folder, without locks."""
    return sorted(path.name for path in target.parent.iterdir() if path.suffix != ".lock")


def fails(url: str, target: Path, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        download(url, target, MD5)
    message = str(error.value)
    assert message.startswith(f"cannot download {url} (")
    assert message.endswith(f"put the file at {target} by hand")
    assert "\n" not in message
    assert left(target) == []


def test_a_file_arrives_whole_and_alone(server: Server, target: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert left(target) == ["data.zip"]
    assert capsys.readouterr() == ("", "")  # no progress bar where there is no terminal, and no log


def test_a_file_that_is_there_is_left_alone(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    fetch(server, target)
    assert (target.read_bytes(), server.asked) == (b"mine", [])


def test_a_broken_transfer_is_started_again(server: Server, target: Path) -> None:
    server.faults = [1500, 2000]
    fetch(server, target)
    assert target.read_bytes() == CONTENT
    assert left(target) == ["data.zip"]
    assert len(server.asked) == 3


def test_a_transfer_that_always_breaks_leaves_nothing_and_the_next_run_succeeds(server: Server, target: Path) -> None:
    server.faults = [1500] * (1 + RETRIES)
    fails(f"{server.url}/data.zip", target, r"1500 bytes read, 254500 more expected")
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_what_a_killed_download_left_is_not_taken_for_the_file(server: Server, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / "tmp1234").write_bytes(CONTENT[:700])
    fetch(server, target)
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("busy", [503, 429, 408])
def test_a_busy_server_is_asked_again(busy: int, server: Server, target: Path) -> None:
    server.faults = [busy, busy]
    fetch(server, target)
    assert target.read_bytes() == CONTENT


def test_a_server_that_stays_busy_is_named_with_its_answer(server: Server, target: Path) -> None:
    server.faults = [503] * (1 + RETRIES)
    fails(f"{server.url}/data.zip", target, r"\(HTTP 503 Service Unavailable\)")


def test_a_missing_page_is_not_asked_for_again(server: Server, target: Path) -> None:
    server.faults = [404] * 3
    fails(f"{server.url}/data.zip", target, r"\(HTTP 404 Not Found\)")
    assert len(server.asked) == 1


def test_a_web_page_is_not_taken_for_the_file(server: Server, target: Path) -> None:
    server.files["data.zip"] = b"\n<!doctype html><title>Sign in</title>"
    fails(f"{server.url}/data.zip", target, r"\(the server sent a web page instead\)")


def test_another_file_is_not_taken_for_ours(server: Server, target: Path) -> None:
    server.files["data.zip"] = older = b"PK, but an older version"
    found = hashlib.md5(older).hexdigest()
    fails(f"{server.url}/data.zip", target, rf"expected md5:{MD5} but got {found}\)")


def test_a_server_that_is_not_there(server: Server, target: Path) -> None:
    fails("http://127.0.0.1:1/data.zip", target, r"\(Connection refused\)")


def test_a_folder_that_cannot_be_written(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in place of a folder")
    with pytest.raises(ConfigError, match=r"cannot save .+ as .+ \(.+\): make that folder writable"):
        fetch(server, tmp_path / "file" / "data.zip")
