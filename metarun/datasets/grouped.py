"""What datasets of rows share: examples of classes or tasks, found in files, encoded once into the cache, and split."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.load import OWN
from metarun.config.words import count, make_inert
from metarun.core.types import Contents, Part, Split, TaskShape
from metarun.datasets.sampling.table import Table, format_range
from metarun.datasets.storage.cache import cache_dir, ensure
from metarun.datasets.storage.rows import Example, hash_content
from metarun.datasets.storage.splits import Choice, Found, check_fractions, draw_splits, join, plural
from metarun.datasets.storage.tree import SPLITS

PACKING = 3  # raise it when packing changes: then files of older versions are not used
SHOWN = 60  # characters of an example's name in a note


class Group(NamedTuple):
    """A class, or a task."""

    split: Split | None  # None if splits are still to be drawn
    name: str
    size: int  # examples


class Packed(NamedTuple):
    """All examples, with equal ones encoded once."""

    rows: Tensor  # [distinct, *example]
    members: Tensor  # [m], positions in `rows`, group by group
    values: Tensor  # [m, outputs] float32; [m, 0] where a group is a class
    groups: list[Group]
    about: dict[str, Any]  # the content of index.json

    @property
    def owners(self) -> Tensor:
        """[m], the number of each example's group."""
        sizes = torch.tensor([group.size for group in self.groups])
        return torch.arange(len(self.groups)).repeat_interleave(sizes)


class Grouped:
    """The part of a dataset that does not depend on what an example is.

    A subclass is a frozen dataclass of settings, which has those below, and says how examples are found and encoded.
    """

    collection: str
    path: str | None
    split_fractions: list[float]
    split_seed: int
    small_classes: str
    data_dir: Path
    device: torch.device

    nouns: ClassVar[tuple[str, str]] = ("class", "example")  # for a group and an example
    wanted: ClassVar[str] = ""  # what `path` must be, in messages

    def find(self) -> Found[Example]:
        """The examples by split and group. Raises ConfigError."""
        raise NotImplementedError

    def encode(self, keys: Sequence[Any]) -> NDArray[Any]:
        """Distinct examples as rows [n, *example]."""
        raise NotImplementedError

    @property
    def form(self) -> str:
        """How rows are made, as a part of a file's name."""
        raise NotImplementedError

    def __post_init__(self) -> None:
        check_fractions(self.split_fractions)

    def prepare(self) -> None:
        """Read and encode. Raises ConfigError if a file is missing or cannot be used."""
        _ = self.packed

    def contents(self) -> Contents:
        """The distinct examples as they were found: texts, or molecules as SMILES strings."""
        packed = self.packed

        def read() -> list[Any]:
            listing = self.find().listing.values()
            return [*dict.fromkeys(example.key for part in listing for group in part.values() for example in group)]

        digest = hashlib.sha256(f"{packed.about['sha256']} {self.source}".encode()).hexdigest()
        return Contents(len(packed.rows), digest, read)

    def describe(self) -> str:
        """Where the examples are, and their number. Only reads."""
        if not self.root.exists():
            return f"nothing at {self.root}: {self.remedy}"
        try:
            cached = cache_dir() / self._cache_name
            if cached.is_dir():
                return "\n".join([f"{self.root}, packed: {cached}", *self._describe_splits(), *self.notes()])
            found = self.find()
            first = f"{self.root}, not packed yet: the first run does it, into {cached}"
            return "\n".join([first, *self._describe_splits(list_groups(found)), *self._describe_origin(found)])
        except ConfigError as error:
            return f"{self.root}: unusable: {error}"

    def notes(self) -> list[str]:
        """Where the split of own data came from, what is not used, and which examples are equal. Prepares the data."""
        about = self.packed.about
        return [*self._describe_origin(Found({}, about["origin"], about["notes"])), *self.list_doubts()]

    def identity(self) -> dict[str, Any]:
        """The counts and the hash of everything. Prepares the data."""
        packed, (group, example) = self.packed, self.nouns
        return {
            "name": self.collection,
            plural(group): {split: len(groups) for split, groups in self.split_groups().items()},
            plural(example): len(packed.members),
            "distinct": len(packed.rows),
            "form": self.form,
            "sha256": packed.about["sha256"],
        }

    @property
    def published(self) -> bool:
        return self.collection not in OWN

    @property
    def root(self) -> Path:
        return Path(self.path).expanduser() if self.path else self.data_dir / self.collection

    @property
    def remedy(self) -> str:
        return f"set dataset.path to {self.wanted}"

    @property
    def source(self) -> str:
        """A hash of what is read."""
        return hash_content(self.root)

    @property
    def _cache_name(self) -> str:
        return f"{self.collection}/{self.form}-{PACKING}-{self.source[:16]}"

    @cached_property
    def packed(self) -> Packed:
        """All examples, mapped from the cache; encodes them if need be. Raises ConfigError."""
        if not self.root.exists():
            raise ConfigError(f"dataset={self.collection}: nothing at {self.root}: {self.remedy}")
        folder = ensure(self._cache_name, self._pack)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))

        def map_array(name: str) -> Tensor:
            """Copy on write, and nobody writes: all processes share it."""
            return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))

        rows, members, values = map(map_array, ("rows", "members", "values"))
        return Packed(rows, members, values, [Group(*group) for group in index["groups"]], index)

    def _pack(self, folder: Path) -> None:
        found = self.find()
        groups = list_groups(found)
        examples = [example for part in found.listing.values() for group in part.values() for example in group]
        number = {key: i for i, key in enumerate(dict.fromkeys(example.key for example in examples))}
        members = np.array([number[example.key] for example in examples], dtype=np.int64)
        arrays = {
            "rows": self.encode([*number]),
            "members": members,
            "values": np.array([example.values for example in examples], dtype=np.float32),
        }
        digest = hashlib.sha256(json.dumps(groups).encode())
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
            digest.update(np.ascontiguousarray(array).data)
        repeated = np.bincount(members)[members] > 1
        names = {int(row): example.name for row, example, twice in zip(members, examples, repeated) if twice}
        about = {"origin": found.origin, "notes": found.notes, "names": names}
        index = {"groups": groups, "sha256": digest.hexdigest(), **about}
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    def split_groups(self, groups: Sequence[Group] | None = None) -> dict[Split, list[int]]:
        """The numbers of each split's groups; those of the packed data by default."""
        groups = self.packed.groups if groups is None else groups
        return draw_splits([group.split for group in groups], self.split_fractions, self.split_seed)

    def usable(self, groups: Sequence[int]) -> list[int]:
        """Those groups that tasks can be drawn from, whatever their shape."""
        return list(groups)

    def choose(self, split: Part, shape: TaskShape, least: int = 1) -> list[int]:
        """The groups of a split with enough examples. Raises ConfigError."""
        groups = self.packed.groups
        sizes, names = [group.size for group in groups], [group.name for group in groups]
        choice = Choice(sizes, names, self.nouns, self.split_fractions, self.small_classes == "skip")
        return choice.choose(split, self.usable(join(self.split_groups(), split)), shape, least)

    def make_table(self, groups: Sequence[int]) -> tuple[Table, Tensor]:
        """The examples of these groups, numbered in their order, and the values [m, outputs] of the table's rows."""
        packed = self.packed
        place = torch.full((len(packed.groups),), -1)
        place[torch.tensor(groups)] = torch.arange(len(groups))
        labels = place[packed.owners]
        chosen = labels >= 0
        rows = packed.rows.to(self.device)
        table = Table.from_labels(rows, labels[chosen], packed.members[chosen], self.device)
        return table, packed.values[chosen].to(self.device)

    def _describe_splits(self, groups: Sequence[Group] | None = None) -> Iterator[str]:
        groups, (group, example) = self.packed.groups if groups is None else groups, self.nouns
        for split, numbers in self.split_groups(groups).items():
            sizes = [groups[number].size for number in numbers]
            if sizes:
                held = f"{count(len(sizes), group)} of {format_range(sizes)} {plural(example)}"
                yield f"{split}: {held}, {sum(sizes)} in all"
            else:
                yield f"{split}: no {plural(group)}"

    def _describe_origin(self, found: Found[Example]) -> Iterator[str]:
        if not self.published:
            yield f"split: {found.origin}"
        yield from found.notes

    def list_doubts(self) -> Iterator[str]:
        """What a person must know of the examples: here those that are equal, which across splits spoils a test."""
        packed, example = self.packed, plural(self.nouns[1])
        split_of = {number: split for split, numbers in self.split_groups().items() for number in numbers}
        twice = (packed.members.bincount() > 1)[packed.members]
        owners: dict[int, list[int]] = {}
        for row, owner in zip(packed.members[twice].tolist(), packed.owners[twice].tolist()):
            owners.setdefault(row, []).append(owner)
        kinds: dict[str, list[tuple[int, str]]] = {}
        for row, groups in owners.items():
            splits = sorted({split_of[group] for group in groups}, key=SPLITS.index)
            labels = list(dict.fromkeys(packed.groups[group].name for group in groups))
            if len(labels) > 1:
                kinds.setdefault(f"{example} under two labels", []).append((row, f" ({', '.join(labels)})"))
            if len(splits) > 1:
                kinds.setdefault(f"equal {example} across {' and '.join(splits)}", []).append((row, ""))
            elif len(labels) == 1:
                kinds.setdefault(f"equal {example} within {splits[0]}", []).append((row, ""))
        for kind, rows in kinds.items():
            row, labels_of = rows[0]
            yield f"{kind}: {len(rows)}, for example {shorten(packed.about['names'][str(row)])}{make_inert(labels_of)}"


def list_groups(found: Found[Example]) -> list[Group]:
    return [Group(split, name, len(held)) for split, part in found.listing.items() for name, held in part.items()]


def shorten(text: str) -> str:
    """A text for a note, in one line."""
    line = make_inert(" ".join(text.split()))
    return repr(line if len(line) <= SHOWN else f"{line[:SHOWN]}...")
