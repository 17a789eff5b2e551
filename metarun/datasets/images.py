"""Pictures of any size in folders, tables, archives or pickles, and the published sets that come so.

The first run packs them into the cache, all of one size; later ones map that file.
"""

import random
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
from metarun.core.types import Split, TaskShape
from metarun.datasets.sampling.augment import View
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.table import Table, placed, span
from metarun.datasets.storage import layouts
from metarun.datasets.storage.archives import fingerprint
from metarun.datasets.storage.cache import cache_dir, prepared
from metarun.datasets.storage.download import download
from metarun.datasets.storage.known_sets import COLLECTIONS
from metarun.datasets.storage.layouts import SPLITS, Classes
from metarun.datasets.storage.packing import ClassOf, Form, Packed, pack

PACKING = 1  # raise it when packing changes, so that older files are not taken for new ones


@register("dataset", "images", DatasetTraits(kind="classification"))
@dataclass(frozen=True)
class Images:
    """Classes of pictures; see configs/dataset/folder.yaml."""

    collection: Literal["folder", "miniimagenet", "tieredimagenet", "cifar_fs", "fc100", "cub"]
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
        if len(self.split_fractions) != 3 or abs(sum(self.split_fractions) - 1) > 1e-6:
            raise ConfigError(
                f"dataset.split_fractions is {self.split_fractions}: it must be three numbers, of train, val and test, "
                "that sum to 1"
            )
        for name, values in (("mean", self.mean), ("std", self.std)):
            if (self.mean is None) != (self.std is None) or (values is not None and len(values) != self.channels):
                raise ConfigError(
                    f"dataset.{name} is {values}: mean and std must be both null, or have a number for each of the "
                    f"{self.channels} channels"
                )

    def prepare(self) -> None:
        """Fetch what can be, verify and pack. Raises ConfigError where there is nothing, or it is not whole."""
        _ = self._packed

    def tasks(self, split: Split, shape: TaskShape) -> EpisodeSampler:
        """Episodes of pictures [channels, image_size, image_size]; changed at random where `split` is train.

        Raises ConfigError where the shape asks for more than there is, and as `prepare` does.
        """
        packed, classes = self._packed, self._large_enough(split, shape)
        numbers = np.full(len(packed.classes), -1)
        numbers[classes] = np.arange(len(classes))
        labels = numbers[packed.labels]
        chosen = torch.from_numpy(np.flatnonzero(labels >= 0))
        pictures, rows = placed(packed.pictures, chosen, self.placement, self.device)
        table = Table.of(pictures, torch.from_numpy(labels)[chosen], rows, self.device)
        view = View(mean=self.mean, std=self.std)
        if split == "train":
            table = replace(table, turned=self.rotations_train == "classes")
            view = replace(view, crop=self.crop, flip=self.flip, jitter=self.jitter)
        return EpisodeSampler(table, shape, view=view)

    def describe(self) -> str:
        """Where the pictures are, what was packed, and what is wrong or remarkable. Only reads."""
        if not self._root.exists():
            return f"nothing at {self._root}: {self._remedy}"
        try:
            packed_in = cache_dir() / self._cache_name
            if not packed_in.is_dir():
                listing = self._listing()
                sizes = {split: len(classes) for split, classes in listing.items()}
                return f"{self._root}: {sizes}, not packed yet: the first run does it, into {packed_in}"
            return "\n".join([f"{self._root}, packed: {packed_in}", *self._remarks(Packed.load(packed_in))])
        except ConfigError as error:
            return f"{self._root}: unusable: {error}"

    def identity(self) -> dict[str, Any]:
        """The settings and counts that tell two uses apart, and the hash of all pixels. Prepares the data."""
        packed = self._packed
        return {
            "name": self.collection,
            "classes": {split: len(self._classes(packed, split)) for split in SPLITS},
            "pictures": len(packed.labels),
            "form": packed.about["form"],
            "sha256": packed.about["sha256"],
        }

    @property
    def _known(self) -> Any:
        return COLLECTIONS.get(self.collection)

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
    def _packed(self) -> Packed:
        if self._known and self._known.download and self.path is None and not self._root.exists():
            url, md5 = self._known.download
            download(url, self._root / url.rpartition("/")[2], md5)
        if not self._root.exists():
            raise ConfigError(f"dataset={self.collection}: nothing at {self._root}: {self._remedy}")
        return Packed.load(prepared(self._cache_name, self._pack, resumable=True))

    def _pack(self, folder: Path) -> None:
        listing = self._listing()
        classes = {ClassOf(split, name): found for split, part in listing.items() for name, found in part.items()}
        pack(classes, self._form, lenient=self._known is None, about=self.collection, folder=folder)

    def _listing(self) -> dict[Split | None, Classes]:
        """Raises ConfigError where there are no pictures, or a published set is not whole."""
        if self._known is not None:
            listing = self._known.found(self._root)
            lack = "it is in none of the known forms" if listing is None else self._known.lacks(listing)
            if listing is None or lack:
                raise ConfigError(f"dataset={self.collection}: {self._root} is not whole, {lack}: {self._remedy}")
            return dict(listing.items())
        divided = layouts.divided(self._root)
        if divided is not None:
            return dict(divided.items())
        classes = layouts.whole(self._root)
        if not classes:
            raise ConfigError(f"{self._root} has no pictures in class folders (<class>/<picture>.jpg): {self._remedy}")
        return {None: classes}

    def _classes(self, packed: Packed, split: Split) -> list[int]:
        """The numbers of a split's classes; drawn from `split_seed` where nothing says which these are."""
        listed = [number for number, (where, _) in enumerate(packed.classes) if where == split]
        free = [number for number, (where, _) in enumerate(packed.classes) if where is None]
        rng = random.Random(self.split_seed)
        free.sort(key=lambda _: rng.random())  # not shuffle(): only of random() does Python promise the same numbers
        ends = [round(len(free) * sum(self.split_fractions[:i])) for i in range(4)]
        i = SPLITS.index(split)
        return sorted([*listed, *free[ends[i] : ends[i + 1]]])

    def _large_enough(self, split: Split, shape: TaskShape) -> list[int]:
        """The classes that have the pictures a task takes. Raises ConfigError where some have not."""
        packed, needed = self._packed, shape.shots + shape.queries
        classes = self._classes(packed, split)
        sizes = packed.sizes()
        small = sorted((sizes[number], number) for number in classes if sizes[number] < needed)
        if small and self.small_classes == "refuse":
            size, number = small[0]
            raise ConfigError(
                f"shots + queries is {shape.shots} + {shape.queries} = {needed}: {len(small)} of the {len(classes)} "
                f"classes of {split} have fewer pictures, {packed.classes[number].name} only {size}: ask for fewer, "
                "or set dataset.small_classes=skip"
            )
        return [number for number in classes if sizes[number] >= needed]

    def _remarks(self, packed: Packed) -> Iterator[str]:
        sizes = packed.sizes()
        for split in SPLITS:
            counts = [sizes[number] for number in self._classes(packed, split)]
            if counts:
                yield f"{split}: {len(counts)} classes of {span(counts)} pictures, {sum(counts)} in all"
            else:
                yield f"{split}: no classes"
        broken = packed.about["broken"]
        if broken["count"]:
            yield f"{broken['count']} pictures could not be used, as {'; '.join(broken['first'][:3])}"
        yield from self._equals(packed)

    def _equals(self, packed: Packed) -> Iterator[str]:
        """Pictures that are there more than once: across splits they spoil a test."""
        split_of = {number: split for split in SPLITS for number in self._classes(packed, split)}
        kinds: dict[str, list[list[int]]] = {}
        for rows in packed.about["equal"]:
            splits = sorted({split_of[packed.labels[row]] for row in rows}, key=SPLITS.index)
            kind = f"across {' and '.join(splits)}" if len(splits) > 1 else f"within {splits[0]}"
            kinds.setdefault(kind, []).append(rows)
        names = packed.names() if kinds else []
        for kind, groups in kinds.items():
            first = " = ".join(names[row] for row in groups[0])
            yield f"equal pictures {kind}: {len(groups)} groups, as {first}"
