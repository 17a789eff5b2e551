"""A table of numbers in the cache that is made block by block: a process that is killed loses one block at most."""

import os
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from metarun.datasets.storage.cache import cache_dir, own

BLOCK = 64  # rows that are made and written together


def grow(
    name: str,
    number: int,
    read: Callable[[], Tensor | Sequence[str]],
    make: Callable[[Any], Tensor],
    about: str,
) -> Tensor:
    """Map the file `name` of the cache as float32 [number, D]; if it is missing, make it or go on making it.

    read: all items, of which `make` gets one block after another and returns rows [n, D]. A second process waits for
    the first. `about` names the rows in the progress bar. Raises ConfigError if the cache cannot be written, and what
    `read` and `make` raise.
    """
    target = cache_dir() / name
    if not target.is_file():
        with own(target):
            if not target.is_file():
                partial = target.with_name(f".{target.name}.partial")
                _fill(partial, number, read(), make, about)
                partial.rename(target)
    return _map(target, number)


def _fill(
    partial: Path,
    number: int,
    items: Tensor | Sequence[str],
    make: Callable[[Any], Tensor],
    about: str,
) -> None:
    """Write all rows after the whole blocks that are there."""
    first = make(items[:BLOCK]).contiguous()
    size = first[0].nbytes
    with (
        partial.open("ab") as file,
        tqdm(desc=about, total=number, disable=None) as bar,
    ):
        done = file.tell() // (BLOCK * size) * BLOCK
        file.truncate(done * size)
        bar.update(done)
        for start in range(done, number, BLOCK):
            rows = make(items[start : start + BLOCK]) if start else first
            file.write(rows.contiguous().numpy().tobytes())
            file.flush()
            os.fsync(file.fileno())
            bar.update(len(rows))


def _map(file: Path, number: int) -> Tensor:
    """Processes share what the system keeps of the file in memory."""
    with warnings.catch_warnings():  # PyTorch warns that the tensor cannot be written, as intended
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.memmap(file, dtype=np.float32, mode="r").reshape(number, -1))
