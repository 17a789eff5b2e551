"""Short texts by intent (what a person wants from an assistant), read from files as published."""

import csv
import hashlib
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.config.words import count
from metarun.core.types import Split, TaskShape
from metarun.datasets.preprocessing import Strings
from metarun.datasets.sampling.augment import NgramTransform
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.table import Table, format_range
from metarun.datasets.storage.archives import fingerprint
from metarun.datasets.storage.cache import cache_dir, ensure
from metarun.datasets.storage.known_sets import read_class_lists
from metarun.datasets.storage.ngrams import Bag

PACKING = 1  # raise it when packing changes: then files of older versions are not used


def read_clinc150(root: Path) -> Iterator[tuple[str, str]]:
    """Class and text of all three published splits, without the texts that are out of scope.

    The published splits divide the texts of every class, so they do not matter here.
    """
    content = json.loads((root / "data_full.json").read_text(encoding="utf-8"))
    return ((label, text) for split in ("train", "val", "test") for text, label in content[split])


def read_banking77(root: Path) -> Iterator[tuple[str, str]]:
    """Class and text of both published files."""
    for name in ("train.csv", "test.csv"):
        for row in csv.DictReader(io.StringIO((root / name).read_text(encoding="utf-8"), newline="")):
            yield row["category"], row["text"]


class Corpus(NamedTuple):
    """A published set."""

    read: Callable[[Path], Iterator[tuple[str, str]]]  # class and text
    texts: int  # of a whole copy
    source: str  # where a user gets it


CORPORA = {
    "clinc150": Corpus(read_clinc150, 22_500, "data_full.json of https://github.com/clinc/oos-eval"),
    "banking77": Corpus(
        read_banking77, 13_083, "train.csv and test.csv of https://github.com/PolyAI-LDN/task-specific-datasets"
    ),
}


class Packed(NamedTuple):
    """Texts as bags of n-grams."""

    rows: Tensor  # [texts, width] int32, class by class
    labels: Tensor  # [texts], positions in `classes`
    classes: list[str]
    sha256: str


@register("dataset", "texts", DatasetTraits(kind="classification", published=True))
@dataclass(frozen=True)
class Texts:
    """Classes of short texts, as bags of hashed n-grams; see configs/dataset/clinc150.yaml."""

    collection: Literal["clinc150", "banking77"]
    path: str | None
    words: bool
    characters: list[Count]
    width: Count
    data_dir: Path
    device: torch.device

    def prepare(self) -> None:
        """Encode the texts. Raises ConfigError if the set is missing, damaged or not whole."""
        _ = self.packed

    def tasks(self, split: Split, shape: TaskShape) -> EpisodeSampler:
        """Episodes of rows [width]. Raises ConfigError if the shape asks for more than the split has."""
        packed, classes = self.packed, read_class_lists(self.collection)[split]
        numbers = {name: number for number, name in enumerate(classes)}
        labels = torch.tensor([numbers.get(name, -1) for name in packed.classes])[packed.labels]
        chosen = labels >= 0
        rows, labels = packed.rows[chosen].to(self.device), labels[chosen]
        table = Table.from_labels(rows, labels, torch.arange(len(labels)), self.device)
        return EpisodeSampler(table, shape, transform=NgramTransform(), split=split)

    def describe(self) -> str:
        """Where the texts are, and their number. Only reads."""
        if not self._root.exists():
            return f"nothing at {self._root}: {self._remedy}"
        try:
            texts = self._read()
        except ConfigError as error:
            return f"{self._root}: unusable: {error}"
        lines = [f"{self._root}, packed: {cache_dir() / self._cache_name}"]
        for split, classes in read_class_lists(self.collection).items():
            sizes = [len(texts[name]) for name in classes]
            number = count(len(classes), "class")
            lines.append(f"{split}: {number} of {format_range(sizes)} texts, {sum(sizes)} in all")
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """Nothing: a set that is not whole is refused."""
        return []

    def identity(self) -> dict[str, Any]:
        """The counts and the hash of all rows. Prepares the data."""
        return {
            "name": self.collection,
            "classes": {split: len(classes) for split, classes in read_class_lists(self.collection).items()},
            "texts": len(self.packed.rows),
            "ngrams": str(self._bag),
            "sha256": self.packed.sha256,
        }

    def preprocessing(self) -> dict[str, Any]:
        """Bags of n-grams of the text."""
        return Strings(self.words, self.characters, self.width).to_json()

    @property
    def _bag(self) -> Bag:
        return Bag(self.characters, self.words, self.width)

    @property
    def _root(self) -> Path:
        return Path(self.path).expanduser() if self.path else self.data_dir / "text-intents" / self.collection

    @property
    def _remedy(self) -> str:
        return f"put {CORPORA[self.collection].source} there, or set dataset.path to the folder that has it"

    @property
    def _cache_name(self) -> str:
        return f"{self.collection}/{self._bag}-{PACKING}-{fingerprint(self._root)[:16]}"

    @cached_property
    def packed(self) -> Packed:
        """All texts, from the cache; encodes them if need be. Raises ConfigError."""
        if not self._root.exists():
            raise ConfigError(f"dataset={self.collection}: nothing at {self._root}: {self._remedy}")
        folder = ensure(self._cache_name, self._pack)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        labels = torch.arange(len(index["sizes"])).repeat_interleave(torch.tensor([*index["sizes"].values()]))
        return Packed(torch.from_numpy(np.load(folder / "rows.npy")), labels, [*index["sizes"]], index["sha256"])

    def _pack(self, folder: Path) -> None:
        classes = self._read()
        rows = self._bag.encode([text for texts in classes.values() for text in texts], self.collection)
        sizes = {name: len(texts) for name, texts in classes.items()}
        digest = hashlib.sha256(json.dumps(sizes).encode() + rows.tobytes()).hexdigest()
        np.save(folder / "rows.npy", rows)
        (folder / "index.json").write_text(json.dumps({"sizes": sizes, "sha256": digest}), encoding="utf-8")

    def _read(self) -> dict[str, list[str]]:
        """Class -> its texts, sorted by class. Raises ConfigError if the set is damaged or not whole."""
        corpus, found = CORPORA[self.collection], defaultdict(list)
        try:
            for name, text in corpus.read(self._root):
                found[name].append(text)
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read ({error.strerror}): {self._remedy}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._root} is damaged ({error!r}): {self._remedy}") from error
        wanted = {name for names in read_class_lists(self.collection).values() for name in names}
        total = sum(len(texts) for texts in found.values())
        if found.keys() != wanted or total != corpus.texts:
            raise ConfigError(
                f"{self._root} is not whole, it has {len(found.keys() & wanted)} of {len(wanted)} classes "
                f"and {total} of {corpus.texts} texts: {self._remedy}"
            )
        return {name: found[name] for name in sorted(found)}
