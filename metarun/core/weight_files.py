"""Files with trained weights of others, read as tensors alone: no code in them is run."""

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from metarun.config.errors import ConfigError
from metarun.config.words import make_inert

REMEDY = "save network.state_dict() by itself"
SHOWN = 3  # names of weights in a message


def load_tensors(key: str, file: Path) -> dict[str, Tensor]:
    """Weights by name, of a safetensors file or of one that `torch.save` wrote from a `state_dict()`.

    key: the setting that names the file. Raises ConfigError for one that is missing or damaged, or that holds anything
    but tensors.
    """
    if not file.is_file():
        raise ConfigError(f"{key}: there is no file {file} with weights")
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's, before it refuses
            found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch, pickle, zipfile and safetensors raise a dozen kinds for broken bytes
        raise ConfigError(f"{key}: the weights {file} cannot be read: {_find_reason(error)}") from error
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        held = _list([str(name) for name in found]) if isinstance(found, Mapping) else f"a {type(found).__name__}"
        raise ConfigError(f"{key}: the weights {file} are not tensors alone, but {held}: {REMEDY}")
    return dict(found)


def _find_reason(error: Exception) -> str:
    text = str(error)
    if found := re.search(r"GLOBAL (\S+) was not an allowed global", text):
        return f"the file holds Python objects ({found[1]}), which could run code: {REMEDY}"
    if "TorchScript" in text:
        return f"the file is a program of TorchScript: {REMEDY}"
    if isinstance(error, ImportError):
        return f"{text} (pip install safetensors)"
    return f"the file is damaged or of another kind ({type(error).__name__})"


def _list(names: Collection[str]) -> str:
    """The first of the names, and how many more there are."""
    more = len(names) - SHOWN
    return make_inert(", ".join(sorted(names)[:SHOWN])) + (f" and {more} more" if more > 0 else "")


def fill(network: nn.Module, key: str, file: Path, name: str, prefix: str = "", without: Collection[str] = ()) -> None:
    """Give a network the weights of a file.

    name: what the network is called in messages. prefix: only weights whose names begin so count, without it.
    without: parts that the network lacks, whose weights are left out. Raises ConfigError if those that remain are not
    exactly the network's.
    """
    weights = {n.removeprefix(prefix): w for n, w in load_tensors(key, file).items() if n.startswith(prefix)}
    weights = {n: w for n, w in weights.items() if not n.startswith(tuple(f"{part}." for part in without))}
    own = network.state_dict()
    lacking = [n for n in own.keys() - weights.keys() if not n.endswith("num_batches_tracked")]
    strange = weights.keys() - own.keys()
    other = [n for n in own.keys() & weights.keys() if own[n].shape != weights[n].shape]
    problems = [
        *([f"it lacks {_list(lacking)}"] if lacking else []),
        *([f"it has {_list(strange)}"] if strange else []),
        *(f"{n} is {list(weights[n].shape)}, not {list(own[n].shape)}" for n in sorted(other)[:1]),
    ]
    if problems:
        raise ConfigError(f"{key} is {file}: its weights are not those of {name}: {'; '.join(problems)}")
    network.load_state_dict(weights, strict=False)
