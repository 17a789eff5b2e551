"""Omniglot: 1,623 handwritten characters of 50 alphabets, each drawn by 20 people.

Lake, Salakhutdinov, Tenenbaum, "Human-level concept learning through probabilistic program induction",
Science 350, 2015; split `vinyals`: Vinyals et al. 2016, https://arxiv.org/abs/1606.04080, by the lists that
Snell et al. 2017, https://arxiv.org/abs/1703.05175, published.

The drawings are read from the official zips, repacked ones or unpacked folders, and packed once into a table
in the cache. A copy is checked by its content, not by a checksum: repacked zips are as good.
"""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Whole
from metarun.config.traits import DatasetTraits
from metarun.config.words import count
from metarun.core.types import Episode, Examples, Part, Split, TaskShape
from metarun.datasets.omniglot_files import DRAWINGS, PARTS, find_parts, list_characters, load, pack
from metarun.datasets.omniglot_runs import RUN, locate_runs
from metarun.datasets.preprocessing import Pictures
from metarun.datasets.sampling.episodes import EpisodeSampler, FixedEpisodes
from metarun.datasets.sampling.table import Table
from metarun.datasets.storage.archives import fingerprint
from metarun.datasets.storage.cache import cache_dir, ensure
from metarun.datasets.storage.download import download
from metarun.datasets.storage.splits import join

URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python"  # the one torchvision uses
PACKING = 1  # raise it when `pack` changes: then tables of older versions are not used

# The published lists in short form: whole alphabets, except Gurmukhi, whose other 41 characters are for training.
# fmt: off
VINYALS_VAL = {"Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)"}
VINYALS_TEST = {"Kannada", "Keble", "Malayalam", "Manipuri", "Mongolian", "Old_Church_Slavonic_(Cyrillic)",
                "Oriya", "Sylheti", "Syriac_(Serto)", "Tengwar", "Tibetan", "ULOG"}
VINYALS_TEST_TOO = {f"Gurmukhi/character{number}" for number in (42, 43, 44, 45)}
# fmt: on


@register(
    "dataset", "omniglot", DatasetTraits(kind="classification", published=True, pooled=True, baselines=("pixels",))
)
@dataclass(frozen=True)
class Omniglot:
    """Handwritten characters as classes of 20 grey images; see configs/dataset/omniglot.yaml."""

    path: str | None
    split: Literal["vinyals", "random", "lake", "latin"]
    split_seed: Whole
    test_tasks: Literal["episodes", "runs"]
    rotations_train: Literal["classes", "episode", "none"]
    rotations_test: Literal["classes", "episode", "none"]
    image_size: Count
    filter: Literal["lanczos", "nearest", "bilinear", "box"]
    ink: Literal[0, 1]
    data_dir: Path
    device: torch.device

    def prepare(self) -> None:
        """Download what is missing, verify and pack it.

        Raises ConfigError if the files are damaged or incomplete, cannot be downloaded, or the data folder or the
        cache cannot be written.
        """
        _ = self.packed

    def tasks(self, split: Part, shape: TaskShape) -> EpisodeSampler | FixedEpisodes:
        """Episodes of images [1, image_size, image_size].

        Raises ConfigError if the shape asks for more than the split has, and as `prepare` does.
        """
        if split == "test" and self.test_tasks == "runs":
            return self._runs(shape)
        images, index = self.packed
        rows = join(divide(index["characters"], self.split, self.split_seed), split)
        names, images = [index["characters"][row].partition("/")[2] for row in rows], images[rows].to(self.device)
        rotations = self._rotations(split)
        if rotations != "none":
            rotated = [torch.rot90(images, quarters, (-2, -1)) for quarters in range(4)]
            images = torch.stack(rotated, dim=1).flatten(0, 1)  # rows 4c..4c+3: the rotations of character c
        if rotations == "classes":
            names = [f"{name} turned by {quarters * 90}" for name in names for quarters in range(4)]
        if self.ink == 1:
            images = 255 - images
        variants = 4 if rotations == "episode" else 1
        return EpisodeSampler(Table.from_classes(images), shape, variants, split=split, names=names)

    def _runs(self, shape: TaskShape) -> FixedEpisodes:
        """The published one-shot runs, which are upright whatever `rotations_test` is. Raises ConfigError."""
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
        images, index = self.packed
        x = images[locate_runs(index["characters"])].to(self.device)  # [T, N, 2, 1, S, S]
        support, query = ((255 - x if self.ink == 1 else x).float() / 255).unbind(2)
        y = torch.arange(RUN.ways, device=self.device).expand(len(x), -1)
        return FixedEpisodes(Episode(Examples(support, y), Examples(query, y)), shape)

    def describe(self) -> str:
        """Where the files and the packed table are, the counts, and what is wrong or missing. Only reads."""
        places = find_parts(self._root)
        lines = [f"{part}: {places.get(part) or f'not found in {self._root}'}" for part in PARTS]
        if len(places) < len(PARTS):
            lines.append(f"the first run downloads what is missing from {URL}, or put the zips there by hand")
            return "\n".join(lines)
        try:
            packed = cache_dir() / self._cache_name(places)
            done = packed.is_dir()
            characters = load(packed)[1]["characters"] if done else list_characters(places)
        except ConfigError as error:
            return "\n".join([*lines, f"unusable: {error}"])
        lines.append(f"packed: {packed}" if done else f"not packed yet: the first run does it, into {packed}")
        for split, rows in divide(characters, self.split, self.split_seed).items():
            classes = len(rows) * (4 if self._rotations(split) == "classes" else 1)
            lines.append(f"{split}: {count(len(rows), 'character')}, {count(classes, 'class')} of {DRAWINGS} images")
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """Nothing: a set that is not whole is refused."""
        return []

    def identity(self) -> dict[str, Any]:
        """The settings and counts in which two uses differ, and the hash of all pixels. Prepares the data."""
        index = self.packed[1]
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

    def preprocessing(self) -> dict[str, Any]:
        """Grey drawings; `ink` is the value of the strokes."""
        pictures = Pictures(self.image_size, channels=1, resize="squeeze", filter=self.filter, ink=self.ink)
        return pictures.to_json()

    @property
    def _root(self) -> Path:
        return self.data_dir / "omniglot" if self.path is None else Path(self.path).expanduser()

    def _rotations(self, split: Part) -> str:
        return self.rotations_train if split == "train" else self.rotations_test

    def _cache_name(self, places: dict[str, Path]) -> str:
        key = hashlib.sha256("".join(fingerprint(place) for place in places.values()).encode())
        return f"omniglot/{self.image_size}-{self.filter}-{PACKING}-{key.hexdigest()[:16]}"

    @cached_property
    def packed(self) -> tuple[Tensor, dict[str, Any]]:
        """All images [characters, 20, 1, S, S] uint8, and the index of `pack`; packs them if need be.

        Raises ConfigError.
        """
        places = find_parts(self._root)
        for part in [part for part in PARTS if part not in places]:
            target = self._root / f"{part}.zip"
            download(f"{URL}/{target.name}", target, PARTS[part].md5)
        places = find_parts(self._root)
        return load(ensure(self._cache_name(places), partial(pack, places, self.image_size, self.filter)))


def divide(characters: Sequence[str], split: str, seed: int) -> dict[Split, list[int]]:
    """The rows of each split, ascending. characters: "images_background/<Alphabet>/characterNN" and so on.

    `lake` tests on the evaluation part, `latin` on the Latin alphabet. Both validate on 100 characters drawn from the
    others, and train on what is left.
    """
    rng = random.Random(seed)
    # Not rng.shuffle(): Python guarantees the same numbers in every version for random() only.
    rows = sorted(range(len(characters)), key=lambda _: rng.random())
    if split == "vinyals":
        splits = [_find_vinyals_split(character) for character in characters]
        train, val, test = ([row for row in rows if splits[row] == name] for name in get_args(Split))
    elif split in ("lake", "latin"):
        tested = "images_evaluation/" if split == "lake" else "images_background/Latin/"
        others = [row for row in rows if not characters[row].startswith(tested)]
        train, val, test = others[100:], others[:100], list(set(rows) - set(others))
    else:
        train, val, test = rows[:1100], rows[1100:1200], rows[1200:]
    return {"train": sorted(train), "val": sorted(val), "test": sorted(test)}


def _find_vinyals_split(character: str) -> Split:
    _, alphabet, number = character.split("/")
    if alphabet in VINYALS_VAL:
        return "val"
    return "test" if alphabet in VINYALS_TEST or f"{alphabet}/{number}" in VINYALS_TEST_TOO else "train"
