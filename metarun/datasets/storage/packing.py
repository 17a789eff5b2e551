"""From pictures of any size and form to one file of equal ones, which a run maps instead of reading.

A packed folder holds `pictures.u8`, uint8 [n, C, S, S]; `labels.i32`, [n], the number of each one's class;
`names.txt`, a line for each; and `index.json`, the classes and what is worth telling. Pillow decodes: at ImageNet's
sizes it is as fast as torchvision's decoder, and it reads every format.
"""

import hashlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
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
from metarun.datasets.storage.layouts import Picture, rows_of

BLOCK = 1000  # pictures between two notes of how far the packing is
MOST_PIXELS = 8 * 10**7  # of one picture: more is taken for a bomb
TOLD = 20  # broken pictures that the index names


@dataclass(frozen=True)
class Form:
    """What every picture is brought to."""

    size: int
    channels: int  # 3: colours, 1: grey
    resize: Literal["squeeze", "crop"]  # the whole picture, or the largest square in its middle
    filter: str


class ClassOf(NamedTuple):
    """A class and the split that it is in; None where that is still to be drawn."""

    split: Split | None
    name: str


@dataclass(frozen=True)
class Packed:
    """A packed folder, mapped."""

    folder: Path
    pictures: Tensor  # [n, C, S, S] uint8, read only
    labels: np.ndarray  # [n] int32
    classes: list[ClassOf]
    about: dict[str, Any]  # what index.json says

    @classmethod
    def load(cls, folder: Path) -> "Packed":
        """Raises ConfigError where the folder is damaged."""
        try:
            index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            labels = np.fromfile(folder / "labels.i32", dtype=np.int32)
            shape = (len(labels), index["form"]["channels"], index["form"]["size"], index["form"]["size"])
            if (folder / "pictures.u8").stat().st_size != np.prod(shape) or len(labels) != index["pictures"]:
                raise ValueError("a file has another length than it should")
            pictures = mapped(folder / "pictures.u8", shape)
        except (OSError, ValueError, KeyError) as error:
            raise ConfigError(f"the packed pictures {folder} are damaged ({error}): delete that folder") from error
        return cls(folder, pictures, labels, [ClassOf(*entry) for entry in index["classes"]], index)

    def sizes(self) -> list[int]:
        """How many pictures each class has."""
        return [int(size) for size in np.bincount(self.labels, minlength=len(self.classes))]

    def names(self) -> list[str]:
        """Where each picture came from."""
        return (self.folder / "names.txt").read_text(encoding="utf-8").splitlines()


def mapped(file: Path, shape: tuple[int, ...]) -> Tensor:
    """uint8, read from the file where it is used; all processes share what the system keeps of it in memory."""
    with warnings.catch_warnings():  # that it cannot be written is meant
        warnings.simplefilter("ignore")
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r", shape=shape))


FILES = ("pictures.u8", "labels.i32", "names.txt")


def pack(classes: dict[ClassOf, list[Picture]], form: Form, lenient: bool, about: str, folder: Path) -> None:
    """Fill the folder; what a killed packing left there is gone on with.

    Pictures that cannot be used are left out and told of where that is `lenient`. Raises ConfigError.
    """
    labels = {picture: label for label, pictures in enumerate(classes.values()) for picture in pictures}
    done = _progress(folder)
    with ExitStack() as stack:
        files = [stack.enter_context((folder / name).open("ab")) for name in FILES]
        for file, size in zip(files, done["sizes"]):
            file.truncate(size)
        pool = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        bar = stack.enter_context(
            tqdm(desc=f"packing {about}", total=len(labels), initial=done["seen"], unit="image", disable=None)
        )
        found = islice(_read(labels), done["seen"], None)
        while block := list(islice(found, BLOCK)):
            results = pool.map(lambda item: brought(item[1], form), block)
            for (picture, _), result in zip(block, results):
                if isinstance(result, bytes):
                    parts = (result, np.int32(labels[picture]).tobytes(), f"{named(picture)}\n".encode())
                    for file, part in zip(files, parts):
                        file.write(part)
                elif not lenient:
                    raise ConfigError(f"{named(picture)} cannot be used ({result}): get a whole copy")
                else:
                    done["broken"].append(f"{named(picture)}: {result}")
            for file in files:
                file.flush()
            done |= {"seen": done["seen"] + len(block), "sizes": [file.tell() for file in files]}
            (folder / "progress.json").write_text(json.dumps(done), encoding="utf-8")
            bar.update(len(block))
    _finish(folder, classes, form, done["broken"])


def brought(content: bytes | np.ndarray, form: Form) -> bytes | str:
    """A picture, as a file's content or uint8 [H, W, 3], as the bytes of [C, S, S]; or why it cannot be."""
    try:
        if isinstance(content, np.ndarray) and content.ndim == 1:  # an encoded one in a pickle
            content = content.tobytes()
        image = Image.fromarray(content) if isinstance(content, np.ndarray) else Image.open(BytesIO(content))
        if image.width * image.height > MOST_PIXELS:
            return f"{image.width} x {image.height} pixels are more than {MOST_PIXELS}"
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits of grey
            image = Image.fromarray((np.asarray(image) // 256).astype(np.uint8))
        if "A" in image.getbands() or "transparency" in image.info:  # on white, as on paper
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB" if form.channels == 3 else "L")
        square, filter = (form.size, form.size), Image.Resampling[form.filter.upper()]
        image = image.resize(square, filter) if form.resize == "squeeze" else ImageOps.fit(image, square, filter)
        pixels = np.asarray(image).reshape(form.size, form.size, form.channels)
        return pixels.transpose(2, 0, 1).tobytes()
    except UnidentifiedImageError:
        return "it is not a picture"
    except Exception as error:  # Pillow raises a dozen kinds for broken bytes
        return str(error) or type(error).__name__


def named(picture: Picture) -> str:
    """For a person."""
    return f"{picture.place.name}/{picture.name}" + ("" if picture.row is None else f", row {picture.row}")


def _read(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, bytes | np.ndarray]]:
    """Each with its content, always in the same order: place by place, as each can be read fast."""
    places: dict[Path, list[Picture]] = {}
    for picture in pictures:
        places.setdefault(picture.place, []).append(picture)
    for place, here in sorted(places.items()):
        for name, group in groupby(sorted(p for p in here if p.row is not None), key=lambda picture: picture.name):
            rows = rows_of(place, name)
            yield from ((picture, np.asarray(rows[picture.row or 0])) for picture in group)
        for name, content in contents(place, {picture.name for picture in here if picture.row is None}):
            yield Picture(place, name), content


def _progress(folder: Path) -> dict[str, Any]:
    """How many pictures were seen, how long the files then were, and which pictures were broken."""
    file = folder / "progress.json"
    with suppress(OSError, ValueError):
        return dict(json.loads(file.read_text(encoding="utf-8")))
    return {"seen": 0, "sizes": [0] * len(FILES), "broken": []}


def _finish(folder: Path, classes: dict[ClassOf, list[Picture]], form: Form, broken: list[str]) -> None:
    labels = np.fromfile(folder / "labels.i32", dtype=np.int32)
    digest = hashlib.sha256(labels.data)
    same: dict[bytes, list[int]] = {}
    with (folder / "pictures.u8").open("rb") as file:
        for row in range(len(labels)):
            pixels = file.read(form.channels * form.size**2)
            digest.update(pixels)
            same.setdefault(hashlib.blake2b(pixels, digest_size=16).digest(), []).append(row)
    index = {
        "classes": list(classes),
        "pictures": len(labels),
        "form": asdict(form),
        "broken": {"count": len(broken), "first": broken[:TOLD]},
        "equal": [rows for rows in same.values() if len(rows) > 1],
        "sha256": digest.hexdigest(),
    }
    (folder / "progress.json").unlink()
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")
