"""Find Omniglot's files (the zips as published, repacked zips, or unpacked folders) and pack them into a table."""

import hashlib
import json
import os
import re
from collections import defaultdict
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from metarun.config.errors import ConfigError
from metarun.config.words import count
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
DRAWINGS, SIDE = 20, 105  # drawings per character; pixels a side
REMEDY = "replace it by a whole copy, or delete it to have it downloaded, or set dataset.path to another copy"


def find_parts(root: Path) -> dict[str, Path]:
    """Part -> the zip or folder that holds it, in `root` or in torchvision's folder below it."""
    found = {}
    for part in PARTS:
        options = [base / name for base in (root, root / "omniglot-py") for name in (f"{part}.zip", part)]
        # os.path.exists is False, and Path.exists raises, where we may not look.
        place = next((option for option in options if os.path.exists(option)), None)
        if place:
            found[part] = place
    return found


def list_characters(places: dict[str, Path]) -> list[str]:
    """The characters of all parts, in the order of the packed table. Raises ConfigError."""
    return [character for part, place in places.items() for character in list_drawings(part, place)]


def list_drawings(part: str, place: Path) -> dict[str, list[str]]:
    """Character -> its 20 files, both sorted. Raises ConfigError if the part is damaged or not whole."""
    pattern = re.compile(rf"(?:.*/)?({part}/[^/]+/character\d\d)/\d{{4}}_\d\d\.png")
    drawings: dict[str, list[str]] = defaultdict(list)
    for name in names(place, REMEDY):
        if match := pattern.fullmatch(f"{part}/{name}" if place.is_dir() else name):
            drawings[match[1]].append(name)
    alphabets, whole = _count_alphabets(drawings), PARTS[part]
    if (alphabets, len(drawings)) != (whole.alphabets, whole.characters):
        raise ConfigError(
            f"{place} has {count(len(drawings), 'character')} of {count(alphabets, 'alphabet')}, "
            f"not {whole.characters} of {whole.alphabets}: {REMEDY}"
        )
    for character, files in drawings.items():
        if len(files) != DRAWINGS:
            raise ConfigError(f"{place} has {count(len(files), 'image')} of {character}, not {DRAWINGS}: {REMEDY}")
    return dict(sorted(drawings.items()))


def pack(places: dict[str, Path], size: int, filter: str, folder: Path) -> None:
    """Write images.npy, uint8 [characters, 20, 1, size, size] with paper 255, and index.json.

    Raises ConfigError if a part is damaged or not whole.
    """
    drawings = {part: list_drawings(part, place) for part, place in places.items()}
    characters = [character for part in drawings.values() for character in part]
    with tqdm(desc="packing Omniglot", total=len(characters) * DRAWINGS, unit="image", disable=None) as bar:
        images = np.concatenate([_read_images(places[part], drawings[part], size, filter, bar) for part in drawings])
    np.save(folder / "images.npy", images)
    index = {
        "characters": characters,
        "alphabets": _count_alphabets(characters),
        "images": len(characters) * DRAWINGS,
        "source": {part: str(place) for part, place in places.items()},
        "sha256": hashlib.sha256(images.data).hexdigest(),
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def load(folder: Path) -> tuple[Tensor, dict[str, Any]]:
    """The table that `pack` wrote, and its index. Raises ConfigError."""
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return torch.from_numpy(np.load(folder / "images.npy")), index
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"the packed table {folder} is damaged ({error}): delete that folder") from error


def read_image(place: Path, name: str, content: bytes, size: int, filter: str) -> np.ndarray:
    """The grey picture, uint8 [size, size], of a file's content. Raises ConfigError.

    It becomes grey before it is resized: Pillow resizes 1-bit images by `nearest`, whatever filter is asked for.
    """
    try:
        image = Image.open(BytesIO(content))
        if image.size != (SIDE, SIDE):
            raise ValueError(f"it is {image.width}x{image.height} pixels, not {SIDE}x{SIDE}")
        return np.asarray(image.convert("L").resize((size, size), Image.Resampling[filter.upper()]))
    except Exception as error:  # Pillow raises a dozen kinds for damaged bytes
        cause = "it is not an image" if isinstance(error, UnidentifiedImageError) else error
        raise ConfigError(f"{place}: {name} cannot be used ({cause}): {REMEDY}") from error


def _read_images(place: Path, drawings: dict[str, list[str]], size: int, filter: str, bar: tqdm) -> np.ndarray:
    """uint8 [characters, 20, 1, size, size]. Raises ConfigError."""
    rows = {name: row for row, name in enumerate(name for files in drawings.values() for name in files)}
    images = np.empty((len(rows), 1, size, size), dtype=np.uint8)
    for name, content in contents(place, rows, REMEDY):
        images[rows[name]] = read_image(place, name, content, size, filter)
        bar.update()
    return images.reshape(-1, DRAWINGS, 1, size, size)


def _count_alphabets(characters: Iterable[str]) -> int:
    return len({character.split("/")[1] for character in characters})
