"""Convert pictures of any size and format to one file of equal ones, which a run maps into memory.

A packed folder holds `pictures.u8`, uint8 [n, C, S, S]; `labels.i32`, [n], the number of each picture's class;
`names.txt`, a line for each picture; and `index.json`, the classes and what a user should know. Pillow decodes: at
ImageNet's sizes it is as fast as torchvision's decoder, and it reads every format.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from metarun.config.errors import ConfigError
from metarun.core.types import Split
from metarun.datasets.storage.archives import contents
from metarun.datasets.storage.layouts import Picture
from metarun.datasets.storage.safe_pickle import read_pickled_pictures

BLOCK = 1000  # pictures read before they are converted together
MOST_PIXELS = 8 * 10**7  # of one picture: more is taken for a decompression bomb
SHOWN = 20  # broken pictures that the index names


@dataclass(frozen=True)
class Form:
    """The form of every packed picture."""

    size: int  # pixels a side
    channels: int  # 3: colours, 1: grey
    resize: Literal["squeeze", "crop"]  # the whole picture, or the largest square in its middle
    filter: str  # Pillow's name of the resampling filter


class ClassOf(NamedTuple):
    """A class and its split; None if splits are still to be drawn."""

    split: Split | None
    name: str


@dataclass(frozen=True)
class Packed:
    """A packed folder, mapped into memory."""

    folder: Path
    pictures: Tensor  # [n, C, S, S] uint8, read only
    labels: np.ndarray  # [n] int32
    classes: list[ClassOf]
    about: dict[str, Any]  # the content of index.json

    @classmethod
    def load(cls, folder: Path) -> "Packed":
        """Raises ConfigError if the folder is damaged."""
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            labels = np.fromfile(folder / "labels.i32", dtype=np.int32)
            shape = (len(labels), index["form"]["channels"], index["form"]["size"], index["form"]["size"])
            if (folder / "pictures.u8").stat().st_size != np.prod(shape) or len(labels) != index["pictures"]:
                raise ValueError("a file has another length than it should")
            pictures = map_pictures(folder / "pictures.u8", shape)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"the packed pictures {folder} are damaged ({error}): delete that folder") from error
        return cls(folder, pictures, labels, [ClassOf(*entry) for entry in index["classes"]], index)

    def sizes(self) -> list[int]:
        """The number of pictures of each class."""
        return [int(size) for size in np.bincount(self.labels, minlength=len(self.classes))]

    def names(self) -> list[str]:
        """Where each picture came from."""
        return (self.folder / "names.txt").read_text(encoding="utf-8").splitlines()


def map_pictures(file: Path, shape: tuple[int, ...]) -> Tensor:
    """Map a file as uint8. Processes share what the system keeps of it in memory."""
    with warnings.catch_warnings():  # PyTorch warns that the tensor cannot be written, as intended
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r", shape=shape))


def pack(classes: dict[ClassOf, list[Picture]], form: Form, lenient: bool, about: str, folder: Path) -> None:
    """Fill `folder`; `about` names the pictures in the progress bar.

    If `lenient`, unusable pictures are left out and listed in the index. Otherwise one raises ConfigError.
    """
    labels = {picture: label for label, pictures in enumerate(classes.values()) for picture in pictures}
    broken: list[str] = []
    with (
        (folder / "pictures.u8").open("wb") as pixels_file,
        (folder / "labels.i32").open("wb") as labels_file,
        (folder / "names.txt").open("w", encoding="utf-8", newline="\n") as names_file,
        tqdm(desc=f"packing {about}", total=len(labels), unit="image", disable=None) as bar,
    ):
        for picture, result in convert_all(labels, form):
            bar.update()
            if isinstance(result, bytes):
                pixels_file.write(result)
                labels_file.write(np.int32(labels[picture]).tobytes())
                names_file.write(f"{picture}\n")
            elif lenient:
                broken.append(f"{picture}: {result}")
            else:
                raise ConfigError(f"{picture} cannot be used ({result}): get a whole copy")
    index = {
        "classes": list(classes),
        "form": asdict(form),
        "broken": {"count": len(broken), "first": broken[:SHOWN]},
        **_summarise(folder, form),
    }
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def convert(content: bytes | np.ndarray | Image.Image, form: Form) -> bytes | str:
    """The pixels [C, S, S] of a picture, or the reason why it cannot be used.

    content: a file's content; of a pickle, uint8 [H, W, 3], or [bytes] of an encoded file; or a picture as Pillow opens
    it.
    """
    try:
        if isinstance(content, np.ndarray) and content.ndim == 1:
            content = content.tobytes()
        if isinstance(content, np.ndarray):
            content = Image.fromarray(content)
        image = Image.open(BytesIO(content)) if isinstance(content, bytes) else content
        if image.width * image.height > MOST_PIXELS:
            return f"{image.width} x {image.height} pixels are more than {MOST_PIXELS}"
        image = _convert_colours(image, form.channels)
        square, filter = (form.size, form.size), Image.Resampling[form.filter.upper()]
        image = image.resize(square, filter) if form.resize == "squeeze" else ImageOps.fit(image, square, filter)
        pixels = np.asarray(image).reshape(form.size, form.size, form.channels)
        return pixels.transpose(2, 0, 1).tobytes()
    except UnidentifiedImageError:
        return "it is not a picture"
    except Exception as error:  # Pillow raises a dozen kinds for damaged bytes
        return str(error) or type(error).__name__


def _convert_colours(image: Image.Image, channels: int) -> Image.Image:
    """Turn the picture upright, reduce 16 bits to 8, and put transparent ones on white."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits of grey
        image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def convert_all(pictures: Iterable[Picture], form: Form) -> Iterator[tuple[Picture, bytes | str]]:
    """Each picture with its pixels, or the reason why it cannot be used; a thread per core, block by block."""
    found = _read(pictures)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(islice(found, BLOCK)):
            results = pool.map(lambda content: convert(content, form), (content for _, content in block))
            yield from zip((picture for picture, _ in block), results)


def _read(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, bytes | np.ndarray]]:
    """Each picture with its content, in an order that depends only on the files: each place in its fastest order."""
    places: dict[Path, list[Picture]] = {}
    for picture in pictures:
        places.setdefault(picture.place, []).append(picture)
    for place, here in sorted(places.items()):
        in_pickles = sorted(picture for picture in here if picture.row is not None)
        for name, group in groupby(in_pickles, key=lambda picture: picture.name):
            rows = read_pickled_pictures(place, name)
            yield from ((picture, np.asarray(rows[picture.row or 0])) for picture in group)
        for name, content in contents(place, {picture.name for picture in here if picture.row is None}):
            yield Picture(place, name), content


def _summarise(folder: Path, form: Form) -> dict[str, Any]:
    """The number of pictures, groups of rows with equal pixels, and the hash of all labels and pixels."""
    labels = np.fromfile(folder / "labels.i32", dtype=np.int32)
    digest = hashlib.sha256(labels.data)
    groups: dict[bytes, list[int]] = {}
    with (folder / "pictures.u8").open("rb") as file:
        for row in range(len(labels)):
            pixels = file.read(form.channels * form.size**2)
            digest.update(pixels)
            groups.setdefault(hashlib.blake2b(pixels, digest_size=16).digest(), []).append(row)
    equal = [rows for rows in groups.values() if len(rows) > 1]
    return {"pictures": len(labels), "equal": equal, "sha256": digest.hexdigest()}
