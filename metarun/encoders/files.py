"""Weights in packages of others: found without running their code, and verified before they are read."""

import hashlib
import importlib.util
from pathlib import Path

import torch
from torch import nn

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


def list_fetch_errors(*others: type[Exception]) -> tuple[type[Exception], ...]:
    """What a fetch from the hub raises: for a file that it lacks, without a network, or where the connection breaks."""
    from huggingface_hub.errors import HfHubHTTPError

    return OSError, *HfHubHTTPError.__bases__, *others  # one base is what its HTTP library raises


def hash_file(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def hash_weights(network: nn.Module) -> str:
    """A hash of the names and values of a network's weights."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(name.encode() + value.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def scale_to_unit(features: torch.Tensor, wanted: bool) -> torch.Tensor:
    """Scale each of the features [n, D] to length 1, if that is wanted; one of zeros stays as it is."""
    return torch.nn.functional.normalize(features) if wanted else features
