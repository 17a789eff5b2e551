"""Read other libraries' pickles of arrays and plain containers, and refuse all others: a pickle can run any code."""

import pickle
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from metarun.config.errors import ConfigError
from metarun.datasets.storage.archives import contents

ALLOWED = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),  # byte strings of Python 2
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which may run anything")
        return super().find_class(module, name)


def unpickle(content: bytes, where: str) -> Any:
    """Raises ConfigError, naming `where`, if the content is damaged or asks for more than arrays and containers."""
    try:
        return _ArrayUnpickler(BytesIO(content), encoding="latin1").load()
    except Exception as error:  # damaged bytes raise a dozen kinds
        raise ConfigError(f"{where} cannot be used ({str(error) or type(error).__name__}): get another copy") from error


def read_pickle(place: Path, name: str, *fields: str) -> Any:
    """Unpickle the file `name` of a folder or archive.

    With `fields`, a dictionary's value under the first of them that it has. Raises ConfigError.
    """
    where = f"{place / name}"
    content = next((content for _, content in contents(place, [name])), None)
    if content is None:
        raise ConfigError(f"{where} is missing: get a whole copy")
    found = unpickle(content, where)
    if not fields or not isinstance(found, dict):
        return found
    for field in fields:
        if field in found:
            return found[field]
    raise ConfigError(f"{where} is not what its name says: it has no {' or '.join(fields)}")


def read_pickled_pictures(place: Path, name: str) -> Sequence[np.ndarray]:
    """The pictures of a pickle: uint8 arrays [S, S, 3], or [bytes] of encoded files. Raises ConfigError."""
    found: Sequence[np.ndarray] = read_pickle(place, name, "image_data", "data")
    if isinstance(found, np.ndarray) and found.ndim == 2:  # CIFAR: [n, 3 * 32 * 32]
        return found.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return found
