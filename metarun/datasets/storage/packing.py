"""Convert pictures of any size and format to one file of equal ones, which a run maps into memory.

A packed folder holds `pictures.u8`, uint8 [n, C, S, S]; `labels.i32`, [n], the number of each picture's class;
`names.txt`, a line for each picture; and `index.json`, the classes and what a user should know. Pillow decodes: at
ImageNet's sizes it is as fast as torchvision's decoder, and it reads every format.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
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
from metarun.config.words import count, make_inert
from metarun.core.types import Split
from metarun.datasets.storage.archives import contents
from metarun.datasets.storage.safe_pickle import read_pickled_pictures
from metarun.datasets.storage.tree import Picture

BLOCK = 1000  # pictures read before they are converted together
MOST_PIXELS = 8 * 10**7  # of one picture: more is taken for a decompression bomb
Extremes = tuple[float, float]  # the least and the largest value of a picture
DEPTHS = (255, 1023, 4095, 16383, 65535)  # largest values of pictures of 8, 10, 12, 14 and 16 bits
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


def pack(
    classes: dict[ClassOf, list[Picture]],
    form: Form,
    lenient: bool,
    about: str,
    folder: Path,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Fill `folder`; `about` names the pictures in the progress bar, `facts` go into the index.

    If `lenient`, unusable pictures are left out and listed in the index, unless they are all. Otherwise one raises
    ConfigError.
    """
    labels = {picture: label for label, pictures in enumerate(classes.values()) for picture in pictures}
    broken: list[str] = []
    with (
        (folder / "pictures.u8").open("wb") as pixels_file,
        (folder / "labels.i32").open("wb") as labels_file,
        (folder / "names.txt").open("w", encoding="utf-8", newline="\n") as names_file,
        tqdm(desc=f"packing {about}", total=len(labels), unit="image", disable=None) as bar,
    ):
        deep: dict[Picture, Extremes] = {}
        for picture, result in convert_all(labels, form, deep):
            bar.update()
            if isinstance(result, bytes):
                pixels_file.write(result)
                labels_file.write(np.int32(labels[picture]).tobytes())
                names_file.write(make_inert(str(picture)).replace("\n", "\\n") + "\n")
            elif lenient:
                broken.append(f"{picture}: {result}")
            else:
                raise ConfigError(f"{picture} cannot be used ({result}): get a whole copy")
    if len(broken) == len(labels):
        raise ConfigError(f"none of {count(len(labels), 'picture')} can be used, for example {'; '.join(broken[:3])}")
    index = {
        "classes": list(classes),
        "form": asdict(form),
        "broken": {"count": len(broken), "first": broken[:SHOWN]},
        "deep": {"count": len(deep), "range": "{:g} to {:g}".format(*find_range(deep.values())) if deep else ""},
        **(facts or {}),
        **_summarise(folder, form),
    }
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


def find_range(extremes: Iterable[tuple[float, float]]) -> tuple[float, float]:
    """The values that become black and white, from the least and largest of each grey picture of more than 8 bits.

    0 to 1 if they hold all, 0 to the largest value of the fewest bits that do, otherwise the least to the largest.
    """
    least, largest = (function(values) for function, values in zip((min, max), zip(*extremes)))
    if least < 0 or largest > DEPTHS[-1]:
        return least, largest
    return 0.0, 1.0 if largest <= 1 else float(next(depth for depth in DEPTHS if largest <= depth))


def convert(content: bytes | np.ndarray | Image.Image, form: Form) -> bytes | str:
    """The pixels [C, S, S] of a single picture, or the reason why it cannot be used.

    content: a file's content; of a pickle, uint8 [H, W, 3], or [bytes] of an encoded file; or a picture as Pillow opens
    it.
    """
    result = _convert(content, form)
    scaled = _convert(content, form, find_range([result])) if isinstance(result, tuple) else result
    assert not isinstance(scaled, tuple)
    return scaled


def _convert(
    content: bytes | np.ndarray | Image.Image, form: Form, scale: Extremes | None = None
) -> bytes | str | Extremes:
    """As `convert`. Without a `scale`, from black to white, a grey picture of more than 8 bits gives its least and its
    largest value instead.
    """
    try:
        if isinstance(content, np.ndarray) and content.ndim == 1:
            content = content.tobytes()
        if isinstance(content, np.ndarray):
            content = Image.fromarray(content)
        image = Image.open(BytesIO(content)) if isinstance(content, bytes) else content
        if image.width * image.height > MOST_PIXELS:
            return f"{image.width} x {image.height} pixels are more than {MOST_PIXELS}"
        if image.mode.startswith("I") or image.mode == "F":
            image = ImageOps.exif_transpose(image)
            values = np.asarray(image, dtype=np.float64)
            if not np.isfinite(values).all():
                return "some of its values are not finite"
            if scale is None:
                return float(values.min()), float(values.max())
            low, high = scale
            values = 255 * (values - low) / max(high - low, 1e-12)
            image = Image.fromarray(values.round().astype(np.uint8))
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
    """Turn the picture upright, and put transparent ones on white."""
    image = ImageOps.exif_transpose(image)
    if "A" in image.getbands() or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB" if channels == 3 else "L")


def convert_all(
    pictures: Iterable[Picture], form: Form, deep: dict[Picture, Extremes] | None = None
) -> Iterator[tuple[Picture, bytes | str]]:
    """Each picture with its pixels, or the reason why it cannot be used.

    Grey pictures of more than 8 bits come last, scaled by the range of all of them, and are added to `deep`.
    """
    deep = {} if deep is None else deep
    for picture, result in _convert_blocks(pictures, form):
        if isinstance(result, tuple):
            deep[picture] = result
        else:
            yield picture, result
    for picture, result in _convert_blocks(deep, form, find_range(deep.values())) if deep else ():
        assert not isinstance(result, tuple)
        yield picture, result


def _convert_blocks(
    pictures: Iterable[Picture], form: Form, scale: Extremes | None = None
) -> Iterator[tuple[Picture, bytes | str | Extremes]]:
    """Each picture as `_convert` gives it; a thread per core, block by block."""
    found = _read(pictures)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while block := list(islice(found, BLOCK)):
            results = pool.map(lambda content: _convert(content, form, scale), (content for _, content in block))
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
