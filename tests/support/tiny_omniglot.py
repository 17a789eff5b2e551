"""A generated Omniglot of 6 characters, for tests: the real layout, 20 drawings each."""

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw

from metarun.datasets.omniglot import Omniglot
from metarun.datasets.omniglot_files import PARTS, Part

TINY = {  # under `vinyals`: 2 characters to train on, 2 to validate on, 2 to test on
    "images_background": {"Armenian": 2, "Latin": 2},
    "images_evaluation": {"Kannada": 2},
}
SETTINGS = {
    "path": None,
    "split": "vinyals",
    "split_seed": 1,
    "test_tasks": "episodes",
    "rotations_train": "none",
    "rotations_test": "none",
    "image_size": 28,
    "filter": "lanczos",
    "ink": 1,
}


def png(character: int, drawer: int, side: int = 105) -> bytes:
    image = Image.new("1", (side, side), 1)
    ImageDraw.Draw(image).line((5 + 12 * character, 8, 40 + 2 * drawer, 90), fill=0, width=4)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def members(part: str) -> dict[str, bytes]:
    """`images_background/Latin/character01/0003_01.png` and so on -> its bytes."""
    names = [f"{part}/{a}/character{n:02}" for a, count in TINY[part].items() for n in range(1, count + 1)]
    first = 1 if part == "images_background" else 5
    return {
        f"{name}/{character:04}_{drawer:02}.png": png(character, drawer)
        for character, name in enumerate(names, start=first)
        for drawer in range(1, 21)
    }


def write_zip(path: Path, files: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def write_zips(root: Path) -> None:
    for part in TINY:
        write_zip(root / f"{part}.zip", members(part))


def write_folder(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def tiny_parts() -> dict[str, Part]:
    return {part: Part(len(a), sum(a.values()), "md5 unknown") for part, a in TINY.items()}


def offer_tiny_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the tiny copy for the whole collection from now on."""
    for part, entry in tiny_parts().items():
        monkeypatch.setitem(PARTS, part, entry)


def dataset(root: Path, **changes: Any) -> Omniglot:
    fields: dict[str, Any] = SETTINGS | {"path": str(root), "data_dir": root, "device": torch.device("cpu")} | changes
    return Omniglot(**fields)
