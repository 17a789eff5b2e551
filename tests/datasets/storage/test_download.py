"""Downloads from a server in this process: whole, broken, refused, or not what was wanted."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from metarun.config.errors import ConfigError
from metarun.datasets.storage import download as fetching
from metarun.datasets.storage.download import download

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `content` with byte ranges; `faults` are what goes wrong with the next answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = CONTENT
        self.faults: list[int] = []  # a status to answer with, or (from 1000) the bytes after which to break off
        self.ranges: list[str | None] = []  # asked for so far
        self.url = f"http://127.0.0.1:{self.server_port}/data.zip"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        asked = self.headers["Range"]
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked else 0
        fault = self.server.faults.pop(0) if self.server.faults else len(CONTENT)
        self.server.ranges.append(asked)
        if fault < 1000 or start >= len(self.server.content):
            self.send_error(fault if fault < 1000 else 416)
        else:
            self.send_response(206 if asked else 200)
            self.send_header("Content-Length", str(len(self.server.content) - start))
            self.end_headers()
            self.wfile.write(self.server.content[start : start + fault])

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetching, "WAITS", (0.0, 0.0, 0.0))
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path: Path):
    return tmp_path / "new" / "data.zip"


def fails(url: str, target, reason: str) -> None:
    with pytest.raises(ConfigError, match=reason) as error:
        download(url, target, MD5)
    message = str(error.value)
    assert message.startswith(f"cannot download {url} (")
    assert message.endswith(f"put the file at {target} by hand")
    assert "\n" not in message
    assert not target.exists()


def test_a_file_arrives_whole_and_alone(server, target) -> None:
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir() if path.suffix != ".lock"] == ["data.zip"]


def test_a_file_that_is_there_is_left_alone(server, target) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    download(server.url, target, MD5)
    assert (target.read_bytes(), server.ranges) == (b"mine", [])


def test_a_broken_transfer_goes_on_where_it_stopped(server, target) -> None:
    server.faults = [1500, 2000]
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1500-", "bytes=3500-"]


def test_what_a_failed_run_got_is_kept_for_the_next(server, target) -> None:
    server.faults = [1500] * 3
    fails(server.url, target, "the transfer broke after 4500 of 256000 bytes")
    download(server.url, target, MD5)
    assert server.ranges[-1] == "bytes=4500-"
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("size", [700, len(CONTENT), len(CONTENT) + 1])
def test_a_partial_file_of_something_else_is_thrown_away(server, target, size) -> None:
    target.parent.mkdir()
    target.with_name("data.zip.part").write_bytes(b"x" * size)
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT
    assert server.ranges == [f"bytes={size}-", None]


def test_a_busy_server_is_asked_again(server, target) -> None:
    server.faults = [503, 429]
    download(server.url, target, MD5)
    assert target.read_bytes() == CONTENT


def test_a_missing_page_is_not_asked_for_again(server, target) -> None:
    server.faults = [404] * 3
    fails(server.url, target, r"\(HTTP 404 Not Found\)")
    assert len(server.ranges) == 1


def test_a_web_page_is_not_taken_for_the_file(server, target) -> None:
    server.content = b"\n<!doctype html><title>Sign in</title>"
    fails(server.url, target, r"\(the server sent a web page instead\)")
    assert not list(target.parent.glob("*.part"))


def test_another_file_is_not_taken_for_ours(server, target) -> None:
    server.content = b"PK, but an older version"
    fails(server.url, target, rf"\(its md5 is \w+ instead of {MD5}\)")
    assert not list(target.parent.glob("*.part"))


def test_a_server_that_is_not_there(server, target) -> None:
    fails("http://127.0.0.1:1/data.zip", target, "refused")


def test_a_folder_that_cannot_be_written(server, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in place of a folder")
    with pytest.raises(ConfigError, match=r"cannot save .+ as .+ \(.+\): make that folder writable"):
        download(server.url, tmp_path / "file" / "data.zip", MD5)
