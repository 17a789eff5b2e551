"""Pictures of any size in folders, tables, archives or pickles: a user's own, and the published sets.

The first run packs them into the cache, all of one size; later runs map that file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Fraction, NonNegative, Positive, Whole
from metarun.config.traits import DatasetTraits
from metarun.config.words import count
from metarun.core.types import Contents, Part, Split, TaskShape
from metarun.datasets.preprocessing import Pictures
from metarun.datasets.sampling.augment import PictureTransform
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.table import Table, format_range, place
from metarun.datasets.storage.archives import fingerprint, is_archive
from metarun.datasets.storage.cache import cache_dir, ensure
from metarun.datasets.storage.download import download
from metarun.datasets.storage.known_sets import KNOWN_SETS, KnownSet
from metarun.datasets.storage.layouts import find
from metarun.datasets.storage.packing import ClassOf, Form, Packed, pack
from metarun.datasets.storage.splits import Choice, Found, check_fractions, draw_splits, join
from metarun.datasets.storage.tree import SPLITS, Picture

PACKING = 3  # raise it when packing changes: then files of older versions are not used
SHOWN = 3  # of a group of equal pictures


@register("dataset", "images", DatasetTraits(kind="classification", published=True, pooled=True, baselines=("pixels",)))
@dataclass(frozen=True)
class Images:
    """Classes of pictures; see configs/dataset/folder.yaml."""

    collection: Literal["folder", "miniimagenet", "tieredimagenet", "cifar_fs", "fc100", "cub", "emnist"]
    path: str | None
    split_fractions: list[Fraction]
    split_seed: Whole
    small_classes: Literal["refuse", "skip"]
    image_size: Count
    channels: Literal[1, 3]
    resize: Literal["squeeze", "crop"]
    filter: Literal["lanczos", "bicubic", "bilinear", "box", "nearest"]
    placement: Literal["auto", "device", "host", "disk"]
    rotations_train: Literal["classes", "none"]
    crop: Whole
    flip: bool
    jitter: NonNegative
    mean: list[float] | None
    std: list[Positive] | None
    data_dir: Path
    device: torch.device

    def __post_init__(self) -> None:
        check_fractions(self.split_fractions)
        for name, values in (("mean", self.mean), ("std", self.std)):
            if (self.mean is None) != (self.std is None) or (values is not None and len(values) != self.channels):
                raise ConfigError(
                    f"dataset.{name} is {values}: mean and std must be both null, or have a number for each of the "
                    f"{self.channels} channels"
                )

    def prepare(self) -> None:
        """Download if that is possible, verify and pack. Raises ConfigError if pictures are missing or damaged."""
        _ = self.packed

    def tasks(self, split: Part, shape: TaskShape) -> EpisodeSampler:
        """Episodes of pictures [channels, image_size, image_size]; those of `train` are changed at random.

        Raises ConfigError if the shape asks for more than the split has, and as `prepare` does.
        """
        packed, classes = self.packed, self._choose_classes(split, shape)
        numbers = np.full(len(packed.classes), -1)
        numbers[classes] = np.arange(len(classes))
        labels = numbers[packed.labels]
        chosen = torch.from_numpy(np.flatnonzero(labels >= 0))
        pictures, rows = place(packed.pictures, chosen, self.placement, self.device)
        table = Table.from_labels(pictures, torch.from_numpy(labels)[chosen], rows, self.device)
        transform = PictureTransform(mean=self.mean, std=self.std)
        if split == "train":
            table = replace(table, rotated=self.rotations_train == "classes")
            transform = replace(transform, crop=self.crop, flip=self.flip, jitter=self.jitter)
        names = [packed.classes[number].name for number in classes]
        return EpisodeSampler(table, shape, transform=transform, split=split, names=names)

    def contents(self) -> Contents:
        """All packed pictures."""
        packed = self.packed
        return Contents(len(packed.labels), packed.about["sha256"], lambda: packed.pictures)

    def describe(self) -> str:
        """Where the pictures are, what was packed, and what is wrong with them. Only reads."""
        if not self._root.exists():
            return f"nothing at {self._root}: {self._remedy}"
        try:
            packed_in = cache_dir() / self._cache_name
            if not packed_in.is_dir():
                found = self._find()
                held = ", ".join(
                    count(len(classes), "class") + (f" of {split}" if split else "")
                    for split, classes in found.listing.items()
                )
                first = f"{self._root}: {held}, not packed yet: the first run does it, into {packed_in}"
                return "\n".join([first, *([] if self._known else [f"split: {found.origin}"]), *found.notes])
            return "\n".join([f"{self._root}, packed: {packed_in}", *self._describe_splits()])
        except ConfigError as error:
            return f"{self._root}: unusable: {error}"

    def notes(self) -> list[str]:
        """Where the split of own pictures came from, what of them is not used or was scaled, and what is in several
        splits. Prepares the data.
        """
        about = self.packed.about
        notes = [] if self._known else [f"split: {about['origin']}"]
        notes += [*about["notes"], *self._describe_broken()]
        if deep := about["deep"]["count"]:
            notes.append(f"{count(deep, 'picture')} of more than 8 bits, scaled from {about['deep']['range']}")
        return [*notes, *self._describe_equals()]

    def identity(self) -> dict[str, Any]:
        """The settings and counts in which two uses differ, and the hash of all pixels. Prepares the data."""
        packed = self.packed
        return {
            "name": self.collection,
            "classes": {split: len(classes) for split, classes in self.split_classes().items()},
            "pictures": len(packed.labels),
            "form": packed.about["form"],
            "sha256": packed.about["sha256"],
        }

    def preprocessing(self) -> dict[str, Any]:
        """Pictures of one size, normalised if the settings say so."""
        pictures = Pictures(self.image_size, self.channels, self.resize, self.filter, mean=self.mean, std=self.std)
        return pictures.to_json()

    @property
    def _known(self) -> KnownSet | None:
        return KNOWN_SETS.get(self.collection)

    @cached_property
    def _root(self) -> Path:
        if self.path is not None:
            return Path(self.path).expanduser()
        folders = self._known.folders if self._known else ("pictures",)
        options = [self.data_dir / name for name in folders]
        return next((option for option in options if option.exists()), options[0])

    @property
    def _remedy(self) -> str:
        if self._known is None:
            return "set dataset.path to a folder of class folders"
        return f"{self._known.source}, or set dataset.path to where it is"

    @property
    def _form(self) -> Form:
        return Form(self.image_size, self.channels, self.resize, self.filter)

    @property
    def _cache_name(self) -> str:
        form = f"{self.image_size}-{self.channels}-{self.resize}-{self.filter}-{PACKING}"
        return f"{self.collection}/{form}-{fingerprint(self._root)[:16]}"

    @cached_property
    def packed(self) -> Packed:
        """All pictures, mapped from the cache; downloads and packs them if need be. Raises ConfigError."""
        if self._known and self._known.download and self.path is None and not self._root.exists():
            url, md5 = self._known.download
            download(url, self._root / url.rpartition("/")[2], md5)
        if not self._root.exists():
            raise ConfigError(f"dataset={self.collection}: nothing at {self._root}: {self._remedy}")
        return Packed.load(ensure(self._cache_name, self._pack))

    def _pack(self, folder: Path) -> None:
        found = self._find()
        classes = {ClassOf(split, name): held for split, part in found.listing.items() for name, held in part.items()}
        facts = {"origin": found.origin, "notes": found.notes}
        pack(classes, self._form, lenient=self._known is None, about=self.collection, folder=folder, facts=facts)

    def _find(self) -> Found[Picture]:
        """The pictures by split and class. Raises ConfigError if there are none, or a published set is not whole."""
        if self._known is not None:
            listing = self._known.find(self._root)
            gap = "it is in none of the known forms" if listing is None else self._known.find_gap(listing)
            if listing is None or gap:
                raise ConfigError(f"dataset={self.collection}: {self._root} is not whole, {gap}: {self._remedy}")
            return Found(dict(listing.items()), "as published")
        if not self._root.is_dir() and not is_archive(self._root):
            hint = f": name the folder that it is in, {self._root.parent}" if self._root.is_file() else ""
            raise ConfigError(f"dataset.path is {self._root}, which is no folder and no archive{hint}")
        found = find(self._root)
        if found is None or not any(found.listing.values()):
            raise ConfigError(f"{self._root} has no pictures in class folders (<class>/<picture>.jpg): {self._remedy}")
        return found

    def split_classes(self) -> dict[Split, list[int]]:
        """The numbers of each split's packed classes. What is not given is drawn by `split_seed`: all splits, or val
        from the classes of train.
        """
        return draw_splits([where for where, _ in self.packed.classes], self.split_fractions, self.split_seed)

    def _choose_classes(self, split: Part, shape: TaskShape) -> list[int]:
        """The classes with enough pictures for a task. Raises ConfigError if they are too few, or others are not to be
        skipped.
        """
        classes = join(self.split_classes(), split)
        names, skip = [name for _, name in self.packed.classes], self.small_classes == "skip"
        choice = Choice(self.packed.sizes(), names, ("class", "picture"), self.split_fractions, skip)
        return choice.choose(split, classes, shape, shape.ways)

    def _describe_splits(self) -> Iterator[str]:
        sizes = self.packed.sizes()
        for split, classes in self.split_classes().items():
            counts = [sizes[number] for number in classes]
            if counts:
                held = count(len(counts), "class")
                yield f"{split}: {held} of {format_range(counts)} pictures, {sum(counts)} in all"
            else:
                yield f"{split}: no classes"
        yield from self.notes()

    def _describe_broken(self) -> Iterator[str]:
        broken = self.packed.about["broken"]
        if broken["count"]:
            examples = "; ".join(broken["first"][:3])
            yield f"{count(broken['count'], 'picture')} could not be used, for example {examples}"

    def _describe_equals(self) -> Iterator[str]:
        """Groups of equal pictures; across splits they spoil a test."""
        split_of = {number: split for split, classes in self.split_classes().items() for number in classes}
        kinds: dict[str, list[list[int]]] = {}
        for rows in self.packed.about["equal"]:
            splits = sorted({split_of[self.packed.labels[row]] for row in rows}, key=SPLITS.index)
            kind = f"across {' and '.join(splits)}" if len(splits) > 1 else f"within {splits[0]}"
            kinds.setdefault(kind, []).append(rows)
        names = self.packed.names() if kinds else []
        for kind, groups in kinds.items():
            first = " = ".join(names[row] for row in groups[0][:SHOWN])
            first += f" = {len(groups[0]) - SHOWN} more" if len(groups[0]) > SHOWN else ""
            yield f"equal pictures {kind}: {count(len(groups), 'group')}, for example {first}"
