"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program induction",
Science 350, 2015; split `vinyals`: Vinyals et al. 2016, https://arxiv.org/abs/1606.04080, by the lists that
Snell et al. 2017, https://arxiv.org/abs/1703.05175, published.

The drawings are read from the official zips, repacked ones or unpacked folders, and packed once into a table
in the cache. Copies are judged by what they hold, not by checksum: repacked zips are as good.
"""

import hashlib
import json
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, get_args
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from metarun.datasets.cache import cache_dir, prepared
from metarun.datasets.download import download, is_web_page
from metarun.datasets.episodes import EpisodeSampler, FixedEpisodes
from metarun.datasets.omniglot_runs import RUN, where
from metarun.datasets.table import Table
from metarun.errors import ConfigError
from metarun.registry import register
from metarun.settings import Count, Whole
from metarun.types import Episode, Examples, Kind, Split, TaskShape


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
URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"  # the one torchvision uses
PACKING = 1  # raise it when `pack` changes, so that tables of older versions are not taken for new ones
REMEDY = "replace it by a whole copy, or delete it to have it downloaded, or set dataset.path to another copy"

# The published lists, in short: whole alphabets, but for Gurmukhi, whose other 41 characters are trained on.
# fmt: off
VINYALS_VAL = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
VINYALS_TEST = {"Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)",
                "Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"}
VINYALS_TEST_TOO = {f"Gurmukhi/character{number}" for number in (42, 43, 44, 45)}
# fmt: on


@register("dataset", "omniglot")
@dataclass(frozen=True)
class Omniglot:
    """Handwritten characters as classes of 20 grey images; see configs/dataset/omniglot.yaml."""

    path: str | None
    split: Literal["vinyals", "random", "lake"]
    split_seed: Whole
    test_tasks: Literal["episodes", "runs"]
    rotations_train: Literal["classes", "episode", "none"]
    rotations_test: Literal["classes", "episode", "none"]
    image_size: Count
    filter: Literal["lanczos", "nearest", "bilinear", "box"]
    ink: Literal[0, 1]
    data_dir: Path
    device: torch.device

    kind: ClassVar[Kind] = "classification"

    def prepare(self) -> None:
        """Download what is missing, verify and pack it.

        Raises ConfigError where the files are damaged or incomplete, cannot be downloaded, or the data
        folder or the cache cannot be written.
        """
        _ = self._packed

    def tasks(self, split: Split, shape: TaskShape) -> EpisodeSampler | FixedEpisodes:
        """Episodes of images [1, image_size, image_size].

        Raises ConfigError where the shape asks for more than the split has, and as `prepare` does.
        """
        if split == "test" and self.test_tasks == "runs":
            return self._runs(shape)
        images, index = self._packed
        rows = divide(index["characters"], self.split, self.split_seed)[split]
        images = images[rows].to(self.device)
        rotations = self._rotations(split)
        if rotations != "none":
            turned = [torch.rot90(images, turns, (-2, -1)) for turns in range(4)]
            images = torch.stack(turned, dim=1).flatten(0, 1)  # rows 4c..4c+3: the rotations of character c
        if self.ink == 1:
            images = 255 - images
        return EpisodeSampler(Table.even(images), shape, variants=4 if rotations == "episode" else 1)

    def _runs(self, shape: TaskShape) -> FixedEpisodes:
        """The published one-shot runs, upright whatever the rotations of other tasks. Raises ConfigError."""
        if self.split != "lake":
            raise ConfigError(
                f"dataset.test_tasks is runs, and dataset.split={self.split} trains on characters of theirs: "
                "use dataset.split=lake"
            )
        if shape != RUN:
            raise ConfigError(
                f"eval.ways, shots and queries are {shape.ways}, {shape.shots} and {shape.queries}: "
                f"the test of dataset.test_tasks=runs has {RUN.ways}, {RUN.shots} and {RUN.queries}"
            )
        images, index = self._packed
        x = images[where(index["characters"])].to(self.device)  # [T, N, 2, 1, S, S]
        support, query = ((255 - x if self.ink == 1 else x).float() / 255).unbind(2)
        y = torch.arange(RUN.ways, device=self.device).expand(len(x), -1)
        return FixedEpisodes(Episode(Examples(support, y), Examples(query, y)), shape)

    def describe(self) -> str:
        """Where the files and the packed table are, and the counts; what is wrong or missing. Only reads."""
        places = find(self._root)
        lines = [f"{part}: {places.get(part) or f'not found in {self._root}'}" for part in PARTS]
        if len(places) < len(PARTS):
            lines.append(f"the first run downloads what is missing from {URL}, or put the zips there by hand")
            return "\n".join(lines)
        try:
            packed = cache_dir() / self._cache_name(places)
            done = packed.is_dir()
            characters = _load(packed)[1]["characters"] if done else _contents(places)
        except ConfigError as error:
            return "\n".join([*lines, f"unusable: {error}"])
        lines.append(f"packed: {packed}" if done else f"not packed yet: the first run does it, into {packed}")
        for split, rows in divide(characters, self.split, self.split_seed).items():
            classes = len(rows) * (4 if self._rotations(split) == "classes" else 1)
            lines.append(f"{split}: {len(rows)} characters, {classes} classes of {DRAWINGS} images")
        return "\n".join(lines)

    def identity(self) -> dict[str, Any]:
        """The settings and counts that tell two uses apart, and the hash of all pixels. Prepares the data."""
        index = self._packed[1]
        splits = divide(index["characters"], self.split, self.split_seed)
        return {
            "name": "omniglot",
            "split": self.split,
            "split_seed": self.split_seed,
            "test_tasks": self.test_tasks,
            "characters": {split: len(rows) for split, rows in splits.items()},
            "rotations": {"train": self.rotations_train, "test": self.rotations_test},
            "image_size": self.image_size,
            "filter": self.filter,
            "ink": self.ink,
            "sha256": index["sha256"],
        }

    @property
    def _root(self) -> Path:
        return self.data_dir / "omniglot" if self.path is None else Path(self.path).expanduser()

    def _rotations(self, split: Split) -> str:
        return self.rotations_train if split == "train" else self.rotations_test

    def _cache_name(self, places: dict[str, Path]) -> str:
        key = hashlib.sha256("".join(_fingerprint(place) for place in places.values()).encode())
        return f"omniglot/{self.image_size}-{self.filter}-{PACKING}-{key.hexdigest()[:16]}"

    @cached_property
    def _packed(self) -> tuple[Tensor, dict[str, Any]]:
        places = find(self._root)
        for part in [part for part in PARTS if part not in places]:
            target = self._root / f"{part}.zip"
            download(f"{URL}/{target.name}", target, PARTS[part].md5)
        places = find(self._root)
        return _load(prepared(self._cache_name(places), partial(pack, places, self.image_size, self.filter)))


def divide(characters: Sequence[str], split: str, seed: int) -> dict[Split, list[int]]:
    """The rows of each split, ascending. characters: "images_background/<Alphabet>/characterNN" and so on.

    `lake` trains on background less 100 characters drawn for validation, and tests on evaluation.
    """
    rng = random.Random(seed)
    # Not shuffle(): only of random() does Python promise the same numbers in every version.
    rows = sorted(range(len(characters)), key=lambda _: rng.random())
    if split == "vinyals":
        listed = [_vinyals(character) for character in characters]
        train, val, test = ([row for row in rows if listed[row] == name] for name in get_args(Split))
    elif split == "lake":
        background = [row for row in rows if characters[row].startswith("images_background/")]
        train, val, test = background[100:], background[:100], list(set(rows) - set(background))
    else:
        train, val, test = rows[:1100], rows[1100:1200], rows[1200:]
    return {"train": sorted(train), "val": sorted(val), "test": sorted(test)}


def _vinyals(character: str) -> Split:
    _, alphabet, number = character.split("/")
    if alphabet in VINYALS_VAL:
        return "val"
    return "test" if alphabet in VINYALS_TEST or f"{alphabet}/{number}" in VINYALS_TEST_TOO else "train"


def find(root: Path) -> dict[str, Path]:
    """Part -> the zip or folder that holds it, in `root` or in torchvision's folder below it."""
    found = {}
    for part in PARTS:
        spots = [base / name for base in (root, root / "omniglot-py") for name in (f"{part}.zip", part)]
        place = next((spot for spot in spots if os.path.exists(spot)), None)  # also where we may not look
        if place:
            found[part] = place
    return found


def pack(places: dict[str, Path], size: int, filter: str, folder: Path) -> None:
    """Write images.npy, uint8 [characters, 20, 1, size, size] with paper 255, and index.json.

    Raises ConfigError where a part is damaged or not whole.
    """
    table, characters = [], []
    total = DRAWINGS * sum(part.characters for part in PARTS.values())
    with tqdm(desc="packing Omniglot", total=total, unit="image", disable=None) as bar:
        for part, place in places.items():
            with _opened(place) as (names, read):
                for character, members in _drawings(part, place, names).items():
                    table.append(np.stack([_grey(place, name, read, size, filter) for name in members]))
                    characters.append(character)
                    bar.update(DRAWINGS)
    images = np.stack(table)[:, :, None]
    np.save(folder / "images.npy", images)
    index = {
        "characters": characters,
        "alphabets": len({character.split("/")[1] for character in characters}),
        "images": len(characters) * DRAWINGS,
        "source": {part: str(place) for part, place in places.items()},
        "sha256": hashlib.sha256(images.data).hexdigest(),
    }
    (folder / "index.json").write_text(json.dumps(index, indent=1), encoding="utf-8")


def _load(folder: Path) -> tuple[Tensor, dict[str, Any]]:
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        return torch.from_numpy(np.load(folder / "images.npy")), index
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"the packed table {folder} is damaged ({error}): delete that folder") from error


def _contents(places: dict[str, Path]) -> list[str]:
    characters: list[str] = []
    for part, place in places.items():
        with _opened(place) as (names, _):
            characters += _drawings(part, place, names)
    return characters


@contextmanager
def _opened(place: Path) -> Iterator[tuple[list[str], Callable[[str], bytes]]]:
    """The names in a folder or zip, and what reads one. Zips are never unpacked: no name can do harm."""
    if place.is_dir():
        names = [path.relative_to(place.parent).as_posix() for path in _files(place)]
        yield names, lambda name: (place.parent / name).read_bytes()
        return
    try:
        archive = ZipFile(place)
    except BadZipFile as error:
        cause = "is a web page" if is_web_page(place) else f"is damaged or cut short ({error})"
        raise ConfigError(f"{place} {cause}, not a zip of Omniglot: {REMEDY}") from error
    with archive:
        yield archive.namelist(), archive.read


def _drawings(part: str, place: Path, names: list[str]) -> dict[str, list[str]]:
    """Character -> its 20 files, both sorted. Raises ConfigError where the part is not whole."""
    pattern = re.compile(rf"(?:^|/)({part}/[^/]+/character\d\d)/\d{{4}}_\d\d\.png$")
    drawings: dict[str, list[str]] = defaultdict(list)
    for name in sorted(names):
        if match := pattern.search(name.replace("\\", "/")):  # some zips are made with backslashes
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


def _grey(place: Path, name: str, read: Callable[[str], bytes], size: int, filter: str) -> np.ndarray:
    """uint8 [size, size]. Grey first: Pillow resizes 1-bit images by `nearest`, whatever it is asked for."""
    try:
        image = Image.open(BytesIO(read(name)))
        if image.size != (SIDE, SIDE):
            raise ValueError(f"it is {image.width}x{image.height} pixels, not {SIDE}x{SIDE}")
        return np.asarray(image.convert("L").resize((size, size), Image.Resampling[filter.upper()]))
    except Exception as error:  # zlib, zipfile and Pillow raise a dozen kinds for broken bytes
        cause = "it is not an image" if isinstance(error, UnidentifiedImageError) else error
        raise ConfigError(f"{place}: {name} cannot be used ({cause}): {REMEDY}") from error


def _fingerprint(place: Path) -> str:
    """Differs where the content does: of a zip's bytes, or of a folder's file names, sizes and times."""
    try:
        if place.is_dir():
            stats = [(path.relative_to(place), path.stat()) for path in _files(place)]
            content = "\n".join(f"{path} {stat.st_size} {stat.st_mtime_ns}" for path, stat in stats).encode()
        else:
            content = place.read_bytes()
    except OSError as error:
        raise ConfigError(f"{place} cannot be read ({error.strerror}): {REMEDY}") from error
    return hashlib.sha256(content).hexdigest()


def _files(folder: Path) -> list[Path]:
    return sorted(Path(parent, name) for parent, _, names in os.walk(folder) for name in names)
