"""Checkpoints: tensors and JSON in one file, written whole or not at all."""

import json
from pathlib import Path
from typing import Any

import torch

from metarun.config.errors import ConfigError
from metarun.core.files import open_bytes


def save(path: Path, tensors: dict[str, Any], facts: dict[str, Any]) -> None:
    """Write nested dictionaries of tensors, and `facts` as JSON text; a reader never sees half a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open_bytes(path) as content:  # PyTorch hides the reason if it cannot write to a file itself
        torch.save({"tensors": tensors, "facts": json.dumps(facts, allow_nan=False)}, content)


def load(path: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """Read the tensors, on `device`, and the facts. Raises ConfigError if the file is missing or damaged."""
    if not path.is_file():
        raise ConfigError(f"there is no checkpoint {path}")
    try:
        content = torch.load(path, map_location=device, weights_only=True)
        return content["tensors"], json.loads(content["facts"])
    except Exception as error:  # torch, pickle and zipfile raise a dozen kinds for broken bytes
        raise ConfigError(
            f"the checkpoint {path} cannot be read, it is damaged or not metarun's: "
            "if it is the run's own, delete it and start the run again"
        ) from error
