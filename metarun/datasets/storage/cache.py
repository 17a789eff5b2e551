"""Where prepared data is kept, and how it gets there: whole or not at all, once, also when two runs start."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from metarun.config.errors import ConfigError


def cache_dir() -> Path:
    """`$METARUN_CACHE`, else `metarun` in the user's cache folder; always absolute."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("METARUN_CACHE") or Path(base, "metarun")).expanduser().absolute()


def prepared(name: str, make: Callable[[Path], None], resumable: bool = False) -> Path:
    """The folder `name` of the cache; `make` fills it where it is missing.

    `make` writes into a scratch folder that takes the name only when it returned, so a folder that exists is
    complete. A failed run leaves nothing, and a killed one nothing that is used, but where `make` is `resumable`: then
    it finds what the killed one had written. A second process waits for the first instead of working beside it.
    Raises ConfigError where the cache cannot be written, and whatever else `make` raises.
    """
    target = cache_dir() / name
    if target.is_dir():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(target.with_name(f"{target.name}.lock")):
            if not target.is_dir():
                _fill(target, make, resumable)
    except OSError as error:
        if not _is_about(target.parent, error):
            raise
        raise ConfigError(
            f"the cache {target.parent} cannot be written ({error.strerror or error}): "
            "set METARUN_CACHE to a folder that can"
        ) from error
    return target


def _fill(target: Path, make: Callable[[Path], None], resumable: bool) -> None:
    scratch = target.with_name(f".{target.name}.partial")
    if not resumable:
        shutil.rmtree(scratch, ignore_errors=True)  # left by a run that was killed: we hold the lock
    scratch.mkdir(exist_ok=True)
    try:
        make(scratch)
        scratch.rename(target)
    except Exception:
        shutil.rmtree(scratch, ignore_errors=True)
        raise


def _is_about(folder: Path, error: OSError) -> bool:
    """Whether the error names the folder, something in it or above it, or no file at all (a full disk)."""
    if error.filename is None:
        return True
    path = Path(error.filename)
    return path.is_relative_to(folder) or folder.is_relative_to(path)
