"""The cache of prepared data: a folder in it is complete, and is made once, even if two processes start together."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from metarun.config.errors import ConfigError


def cache_dir() -> Path:
    """`$METARUN_CACHE`, else `metarun` in the user's cache folder; always absolute."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("METARUN_CACHE") or Path(base, "metarun")).expanduser().absolute()


def ensure(name: str, fill: Callable[[Path], None]) -> Path:
    """The folder `name` of the cache; if it is missing, `fill` makes its content.

    `fill` writes to a scratch folder, which is renamed when `fill` has returned: a folder that exists is complete. A
    failed or interrupted `fill` leaves nothing; what a killed one left is removed by the next. A second process waits
    for the first. Raises ConfigError if the cache cannot be written, and what `fill` raises.
    """
    target = cache_dir() / name
    if target.is_dir():
        return target
    with own(target):
        if not target.is_dir():
            _make(target, fill)
    return target


@contextmanager
def own(target: Path) -> Iterator[None]:
    """Make the folder that `target` is to be in, and work at it alone. Raises ConfigError if it cannot be written."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            yield
    except OSError as error:
        if not _concerns(target.parent, error):
            raise
        raise ConfigError(
            f"the cache {target.parent} cannot be written ({error.strerror or f'{error}: is the disk full?'}): "
            "set METARUN_CACHE to a folder that can"
        ) from error


def _make(target: Path, fill: Callable[[Path], None]) -> None:
    scratch = target.with_name(f".{target.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a killed process: we hold the lock
    scratch.mkdir()
    try:
        fill(scratch)
        scratch.rename(target)
    except BaseException:  # an interrupt too
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _concerns(folder: Path, error: OSError) -> bool:
    """Whether the error names the folder, something in it or above it, or no file at all (a full disk)."""
    if error.filename is None:
        return True
    path = Path(error.filename)
    return path.is_relative_to(folder) or folder.is_relative_to(path)
