"""Files that a reader finds whole or not at all, whatever ends the process that writes them."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SCRATCH = ".partial"  # end of the name of a file that is being written


def write_whole(path: Path, content: bytes) -> None:
    """Write a file under another name beside it, then rename it. A failure, as of a full disk, leaves nothing."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}{SCRATCH}")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except BaseException as error:  # an interrupt too
        scratch.unlink(missing_ok=True)
        if isinstance(error, OSError):
            error.filename = str(path)  # which the system does not name if it is full
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, whole or not at all."""
    write_whole(path, text.encode())


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BytesIO]:
    """Collect bytes in memory, and write them at the end, whole or not at all."""
    content = io.BytesIO()
    yield content
    write_whole(path, content.getvalue())


def remove_scratch(folder: Path) -> None:
    """Remove what killed processes left half-written in the folder; no other process may be at work there."""
    for file in folder.glob(f".*{SCRATCH}"):
        file.unlink(missing_ok=True)
