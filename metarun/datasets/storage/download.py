"""Fetching a file: resumed after a broken transfer, checked, and in place only when it is whole."""

import hashlib
import ssl
import time
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from filelock import FileLock
from tqdm import tqdm

from metarun.config.errors import ConfigError

WAITS = (0.0, 1.0, 2.0, 4.0)  # seconds before each attempt
TIMEOUT = 30.0  # seconds without a byte after which a transfer counts as broken
WORTH_RETRYING = (408, 416, 429)  # of the 4xx answers; 416: our partial file is longer than theirs


class _Refused(Exception):
    """The server answered, and asking again would not change the answer."""


def download(url: str, target: Path, md5: str) -> None:
    """Save `url` as `target`; what arrived before a transfer broke stays in `target`.part for the next one.

    Raises ConfigError, one line, where the folder cannot be written, the server refuses, every attempt
    breaks, or what arrives is not the file with this md5.
    """
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f".{target.name}.lock")):  # a second run waits for the first
            if not target.exists():
                reason = _attempt(url, part, md5)
                if reason:
                    raise ConfigError(f"cannot download {url} ({reason}): put the file at {target} by hand")
                part.replace(target)
    except OSError as error:
        raise ConfigError(
            f"cannot save {url} as {target} ({error.strerror or error}): "
            "make that folder writable, or put the file there by hand"
        ) from error


def is_web_page(path: Path) -> bool:
    """Whether the file is HTML: what login pages, quota notices and captive portals send instead of data."""
    with path.open("rb") as file:
        start = file.read(1024).lower()
    return start.lstrip().startswith(b"<!doctype html") or b"<html" in start


def _attempt(url: str, part: Path, md5: str) -> str:
    """Fill `part`; returns why that failed in the end, or nothing."""
    reason = ""
    for wait in WAITS:
        time.sleep(wait)
        try:
            _transfer(url, part)
        except _Refused as refusal:
            return str(refusal)
        except (URLError, HTTPException, ConnectionError, TimeoutError, ssl.SSLError) as error:
            reason = str(getattr(error, "reason", error) or type(error).__name__)
            continue
        found = hashlib.md5(part.read_bytes(), usedforsecurity=False).hexdigest()
        if found == md5:
            return ""
        page = is_web_page(part)
        part.unlink()
        if page:
            return "the server sent a web page instead"
        reason = f"its md5 is {found} instead of {md5}"
    return reason


def _transfer(url: str, part: Path) -> None:
    """Append what `part` still lacks. Raises ConnectionError where the transfer stops early."""
    have = part.stat().st_size if part.exists() else 0
    request = Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urlopen(request, timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416:
            part.unlink()
        if error.code < 500 and error.code not in WORTH_RETRYING:
            raise _Refused(f"HTTP {error.code} {error.reason}") from error
        raise ConnectionError(f"HTTP {error.code} {error.reason}") from error
    with response:
        if response.status != 206:  # the whole file, whatever we asked for
            have = 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with (
            part.open("ab" if have else "wb") as file,
            tqdm(desc=part.stem, initial=have, total=total, unit="B", unit_scale=True, disable=None) as bar,
        ):
            while chunk := response.read(1 << 16):
                file.write(chunk)
                bar.update(len(chunk))
                have += len(chunk)
    if total is not None and have < total:
        raise ConnectionError(f"the transfer broke after {have} of {total} bytes")
