"""Where prepared data is kept, and how it gets there: whole or not at all, once, also when two runs start."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from metarun.settings import ConfigError


def cache_dir() -> Path:
    """`$METARUN_CACHE`, else the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("METARUN_CACHE") or Path(base) / "metarun")


def prepared(name: str, make: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; `make` fills it where it is missing.

    `make` writes into a scratch folder that takes the name only when it returned, so a folder that exists is
    complete. A second process waits for the first instead of working beside it.
    Raises ConfigError where the cache cannot be written.
    """
    target = cache_dir() / name
    if target.is_dir():
        return target
    with _writable(target.parent), FileLock(target.with_name(f"{target.name}.lock")):
        if not target.is_dir():
            scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
            try:
                make(scratch)
                scratch.rename(target)
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
    return target


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        if error.filename is None or Path(error.filename).is_relative_to(folder) or error.errno == 28:
            raise ConfigError(
                f"the cache {folder} cannot be written ({error.strerror}): "
                f"set METARUN_CACHE to a folder that can"
            ) from error
        raise
