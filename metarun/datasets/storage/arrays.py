"""Read arrays of features as NumPy writes them, without running what a file may hold."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.config.errors import ConfigError
from metarun.core.machine import free_memory

FEATURES = ("embeddings", "features", "x")
LABELS = ("labels", "label", "y", "targets", "classes")
BESIDE = ("splits", "split", "files")


def load_features(path: Path) -> tuple[NDArray[np.float32], NDArray[Any] | None, dict[str, NDArray[Any]]]:
    """Vectors [n, ...], their labels [n] or None, and all arrays of the file. Raises ConfigError."""
    try:
        with zipfile.ZipFile(path) as archive:
            size, free = sum(info.file_size for info in archive.infolist()), free_memory(torch.device("cpu"))
        if size > free:
            raise ConfigError(f"{path} takes {size / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free")
        with np.load(path, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror or 'it is no npz file'})") from error
    except (ValueError, EOFError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        pickled = "pickle" in str(error)
        reason = "holds pickled objects, which could run code" if pickled else f"is no whole npz file ({error})"
        raise ConfigError(
            f"{path} {reason}: save plain arrays by numpy.savez(file, embeddings=..., labels=...)"
        ) from error
    features = _pick(arrays, FEATURES)
    labels = _pick(arrays, LABELS)
    if features is None:
        raise ConfigError(f"{path} has no array embeddings: it has {', '.join(arrays) or 'none'}")
    if features.ndim < 2 or features.dtype.kind not in "fiub" or 0 in features.shape:
        raise ConfigError(
            f"{path}: embeddings are {features.dtype} {list(features.shape)}: they must be numbers, [n, features]"
        )
    for name, array in arrays.items():
        if (array is labels or name in BESIDE) and array.shape != features.shape[:1]:
            raise ConfigError(
                f"{path}: {name} is {list(array.shape)}: it must be [{len(features)}], one for each of the embeddings"
            )
    if labels is not None and labels.dtype.kind not in "iubUS":
        raise ConfigError(f"{path}: labels are {labels.dtype}: they must be integers or texts, a class for each row")
    with np.errstate(over="ignore"):  # what is too large is refused below
        values = features.astype(np.float32)
    if not np.isfinite(values).all():
        row = int(np.flatnonzero(~np.isfinite(values).reshape(len(values), -1).all(1))[0])
        raise ConfigError(f"{path}: row {row} of the embeddings holds numbers that are not finite in float32")
    return values, labels, arrays


def _pick(arrays: dict[str, NDArray[Any]], names: Sequence[str]) -> NDArray[Any] | None:
    found = {name.lower(): array for name, array in arrays.items()}
    return next((found[name] for name in names if name in found), None)
