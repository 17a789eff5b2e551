"""Omniglot's files: the zips as published, repacked ones or unpacked folders, packed once into a table."""

import hashlib
import json
import os
import re
from collections import defaultdict
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from metarun.config.errors import ConfigError
from metarun.datasets.storage.archives import contents, names


class Part(NamedTuple):
    """One half of the collection, as published."""

    alphabets: int
    characters: int
    md5: str  # of the official zip


PARTS = {
    "images_background": Part(30, 964, "68d2efa1b9178cc56df9314c21c6e718"),
    "images_evaluation": Part(20, 659, "6b91aef0f799c5bb55b94e3f2daec811"),
}
DRAWINGS, SIDE = 20, 105  # per character; pixels
REMEDY = "replace it by a whole copy, or delete it to have it downloaded, or set dataset.path to another copy"


def find(root: Path) -> dict[str, Path]:
    """Part -> the zip or folder that holds it, in `root` or in torchvision's folder below it."""
    found = {}
    for part in PARTS:
        spots = [base / name for base in (root, root / "omniglot-py") for name in (f"{part}.zip", part)]
        place = next((spot for spot in spots if os.path.exists(spot)), None)  # also where we may not look
        if place:
            found[part] = place
    return found


def characters(part: str, place: Path) -> dict[str, list[str]]:
    """Character -> its 20 files, both sorted. Raises ConfigError where the part is not whole, or damaged."""
    pattern = re.compile(rf"(?:.*/)?({part}/[^/]+/character\d\d)/\d{{4}}_\d\d\.png")
    drawings: dict[str, list[str]] = defaultdict(list)
    for name in names(place, REMEDY):
        if match := pattern.fullmatch(f"{part}/{name}" if place.is_dir() else name):
            drawings[match[1]].append(name)
    alphabets = len({character.split("/")[1] for character in drawings})
    whole = PARTS[part]
    if (alphabets, len(drawings)) != (whole.alphabets, whole.characters):
        raise ConfigError(
            f"{place} has {len(drawings)} characters of {alphabets} alphabets, "
            f"not {whole.characters} of {whole.alphabets}: {REMEDY}"
        )
    for character, files in drawings.items():
        if len(files) != DRAWINGS:
            raise ConfigError(f"{place} has {len(files)} images of {character}, not {DRAWINGS}: {REMEDY}")
    return dict(sorted(drawings.items()))


def listed(places: dict[str, Path]) -> list[str]:
    """All characters, as the rows of the table. Raises ConfigError."""
    return [character for part, place in places.items() for character in characters(part, place)]


def pack(places: dict[str, Path], size: int, filter: str, folder: Path) -> None:
    """Write images.npy, uint8 [characters, 20, 1, size, size] with paper 255, and index.json.

    Raises ConfigError where a part is damaged or not whole.
    """
    tables: list[np.ndarray] = []
    found: list[str] = []
    total = DRAWINGS * sum(part.characters for part in PARTS.values())
    with tqdm(desc="packing Omniglot", total=total, unit="image", disable=None) as bar:
        for part, place in places.items():
            drawings = characters(part, place)
            rows = {name: row for row, name in enumerate(name for files in drawings.values() for name in files)}
            table = np.empty((len(rows), 1, size, size), dtype=np.uint8)
            for name, content in contents(place, rows, REMEDY):
                table[rows[name]] = grey(place, name, content, size, filter)
                bar.update()
            tables.append(table.reshape(-1, DRAWINGS, 1, size, size))
            found += drawings
    images = np.concatenate(tables)
    np.save(folder / "images.npy", images)
    index = {
        "characters": found,
        "alphabets": len({character.split("/")[1] for character in found}),
        "images": len(found) * DRAWINGS,
        "source": {part: str(place) for part, place in places.items()},
        "sha256": hashlib.sha256(images.data).hexdigest(),
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def grey(place: Path, name: str, content: bytes, size: int, filter: str) -> np.ndarray:
    """uint8 [size, size]. Grey first: Pillow resizes 1-bit images by `nearest`, whatever it is asked for."""
    try:
        image = Image.open(BytesIO(content))
        if image.size != (SIDE, SIDE):
            raise ValueError(f"it is {image.width}x{image.height} pixels, not {SIDE}x{SIDE}")
        return np.asarray(image.convert("L").resize((size, size), Image.Resampling[filter.upper()]))
    except Exception as error:  # Pillow raises a dozen kinds for broken bytes
        cause = "it is not an image" if isinstance(error, UnidentifiedImageError) else error
        raise ConfigError(f"{place}: {name} cannot be used ({cause}): {REMEDY}") from error


def load(folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """The table of `pack` and its index. Raises ConfigError."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return torch.from_numpy(np.load(folder / "images.npy")), index
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"the packed table {folder} is damaged ({error}): delete that folder") from error
