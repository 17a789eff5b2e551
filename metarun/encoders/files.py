"""Weights in packages of others: found without running their code, and verified before they are read."""

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

import torch

from metarun.config.errors import ConfigError


def find_packaged(encoder: str, package: str, name: str, sha256: str) -> Path:
    """The file `name` of an installed package. Raises ConfigError if it is missing, or has another content."""
    spec = importlib.util.find_spec(package)
    folders = spec.submodule_search_locations if spec else None
    file = Path(folders[0], name) if folders else None
    if file is None or not file.is_file():
        raise ConfigError(f"encoder={encoder}: there is no package {package} with a file {name}: install it again")
    if (found := hash_file(file)) != sha256:
        raise ConfigError(
            f"encoder={encoder}: {file} has the SHA-256 {found[:12]}..., not {sha256[:12]}...: reinstall it"
        )
    return file


def hash_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def load_tensors(encoder: str, file: Path) -> dict[str, torch.Tensor]:
    """Weights by name, of a safetensors file or of one that PyTorch reads without running code. Raises ConfigError."""
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return dict(load_file(file))
        weights: Any = torch.load(file, map_location="cpu", weights_only=True)
        return dict(weights)
    except Exception as error:  # torch, pickle, zipfile and safetensors raise a dozen kinds for broken bytes
        reason = str(error).splitlines()[0]
        raise ConfigError(f"encoder={encoder}: the weights {file} cannot be read: {reason}") from error


def scale_to_unit(features: torch.Tensor, wanted: bool) -> torch.Tensor:
    """Scale each of the features [n, D] to length 1, if that is wanted; one of zeros stays as it is."""
    return torch.nn.functional.normalize(features) if wanted else features
