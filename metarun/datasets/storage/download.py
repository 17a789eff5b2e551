"""Download a file: checked by its md5, and in place only when it is whole."""

from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from metarun.config.errors import ConfigError

RETRIES = 3  # after a broken transfer, a busy server or a wrong file; pooch waits 1, 2, 3 seconds before them
TIMEOUT = 30.0  # seconds without a byte after which a transfer counts as broken
TEMPORARY = (408, 429)  # of the 4xx answers, those after which asking again makes sense


class _Refused(Exception):
    """The server answered, and asking again would not change the answer."""


def download(url: str, target: Path, md5: str) -> None:
    """Save `url` as `target`; a file that is there already is left alone. A second process waits for the first.

    Raises ConfigError, one line, if the folder cannot be written, the server refuses, every attempt breaks, or what
    arrives is not the file with this md5.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):
            reason = None if target.exists() else _fetch(url, target, md5)
    except OSError as error:
        raise ConfigError(
            f"cannot save {url} as {target} ({error.strerror or error}): "
            "make that folder writable, or put the file there by hand"
        ) from error
    if reason:
        raise ConfigError(f"cannot download {url} ({reason}): put the file at {target} by hand")


def is_web_page(path: Path) -> bool:
    """Whether the file is HTML, which login pages, quota notices and captive portals send instead of data."""
    with path.open("rb") as file:
        start = file.read(1024).lower()
    return start.lstrip().startswith(b"<!doctype html") or b"<html" in start


def _fetch(url: str, target: Path, md5: str) -> str | None:
    """Download through a temporary file beside `target`. Returns why it failed, or None."""
    import pooch
    from requests import RequestException

    pooch.get_logger().setLevel("WARNING")  # our progress bar says it already
    source = pooch.create(
        path=target.parent,
        base_url="",
        registry={target.name: f"md5:{md5}"},
        urls={target.name: url},
        retry_if_failed=RETRIES,
    )
    try:
        source.fetch(target.name, downloader=_transfer)
    except _Refused as refusal:
        return str(refusal)
    except RequestException as error:  # is an OSError, but not one of the disk
        return _explain(error)
    except ValueError as error:  # the wrong md5
        return str(error).partition(". ")[0]
    return None


def _transfer(url: str, file: str, _: Any) -> None:
    """Download once. Raises _Refused if the server refuses for good or sends a web page."""
    from pooch import HTTPDownloader
    from requests import HTTPError

    try:
        with tqdm(desc=url.rpartition("/")[2], total=1, unit="B", unit_scale=True, disable=None) as bar:
            HTTPDownloader(progressbar=bar, timeout=TIMEOUT)(url, file, None)
    except HTTPError as error:
        response = error.response
        if response is not None and 400 <= response.status_code < 500 and response.status_code not in TEMPORARY:
            raise _Refused(_explain(error)) from error
        raise
    if is_web_page(Path(file)):
        raise _Refused("the server sent a web page instead")


def _explain(error: BaseException) -> str:
    """The innermost cause, for example "Connection refused"."""
    response = getattr(error, "response", None)
    if response is not None:
        return f"HTTP {response.status_code} {response.reason}"
    while error.__context__ is not None:
        error = error.__context__
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
