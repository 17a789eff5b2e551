"""What people say to an assistant, by what they want: sets of short texts, read as they were published."""

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
from metarun.core.types import Split, TaskShape
from metarun.datasets.sampling.augment import Stored
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.sampling.table import Table, span
from metarun.datasets.storage.archives import fingerprint
from metarun.datasets.storage.cache import cache_dir, prepared
from metarun.datasets.storage.known_sets import lists
from metarun.datasets.storage.ngrams import Bag

PACKING = 1  # raise it when packing changes, so that older files are not taken for new ones


def clinc150(root: Path) -> Iterator[tuple[str, str]]:
    """Class and text of its three splits, which divide the texts of every class; not what is out of its scope."""
    content = json.loads((root / "data_full.json").read_text(encoding="utf-8"))
    return ((label, text) for split in ("train", "val", "test") for text, label in content[split])


def banking77(root: Path) -> Iterator[tuple[str, str]]:
    for name in ("train.csv", "test.csv"):
        for row in csv.DictReader(io.StringIO((root / name).read_text(encoding="utf-8"), newline="")):
            yield row["category"], row["text"]


class Corpus(NamedTuple):
    """A published set."""

    read: Callable[[Path], Iterator[tuple[str, str]]]
    texts: int
    source: str


CORPORA = {
    "clinc150": Corpus(clinc150, 22_500, "data_full.json of https://github.com/clinc/oos-eval"),
    "banking77": Corpus(
        banking77, 13_083, "train.csv and test.csv of https://github.com/PolyAI-LDN/task-specific-datasets"
    ),
}


class Packed(NamedTuple):
    rows: Tensor  # [texts, width] int32, class by class
    labels: Tensor  # [texts], of the classes' order
    classes: list[str]
    sha256: str


@register("dataset", "texts", DatasetTraits(kind="classification"))
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
        """Raises ConfigError where there is nothing, or it is not whole."""
        _ = self._packed

    def tasks(self, split: Split, shape: TaskShape) -> EpisodeSampler:
        """Episodes of rows [width]. Raises ConfigError where the shape asks for more than there is."""
        packed, numbers = self._packed, {name: number for number, name in enumerate(lists(self.collection)[split])}
        labels = torch.tensor([numbers.get(name, -1) for name in packed.classes])[packed.labels]
        chosen = labels >= 0
        rows, labels = packed.rows[chosen].to(self.device), labels[chosen]
        return EpisodeSampler(Table.of(rows, labels, torch.arange(len(labels)), self.device), shape, view=Stored())

    def describe(self) -> str:
        """Where the texts are and how many. Only reads."""
        if not self._root.exists():
            return f"nothing at {self._root}: {self._remedy}"
        try:
            found = self._read()
        except ConfigError as error:
            return f"{self._root}: unusable: {error}"
        lines = [f"{self._root}, packed: {cache_dir() / self._cache_name}"]
        for split, classes in lists(self.collection).items():
            sizes = [len(found[name]) for name in classes]
            lines.append(f"{split}: {len(classes)} classes of {span(sizes)} texts, {sum(sizes)} in all")
        return "\n".join(lines)

    def identity(self) -> dict[str, Any]:
        """The counts and the hash of all rows. Prepares the data."""
        return {
            "name": self.collection,
            "classes": {split: len(classes) for split, classes in lists(self.collection).items()},
            "texts": len(self._packed.rows),
            "ngrams": str(self._bag),
            "sha256": self._packed.sha256,
        }

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
    def _packed(self) -> Packed:
        if not self._root.exists():
            raise ConfigError(f"dataset={self.collection}: nothing at {self._root}: {self._remedy}")
        folder = prepared(self._cache_name, self._pack)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        labels = torch.arange(len(index["sizes"])).repeat_interleave(torch.tensor([*index["sizes"].values()]))
        return Packed(torch.from_numpy(np.load(folder / "rows.npy")), labels, [*index["sizes"]], index["sha256"])

    def _pack(self, folder: Path) -> None:
        found = self._read()
        rows = self._bag.rows([text for texts in found.values() for text in texts], self.collection)
        sizes = {name: len(texts) for name, texts in found.items()}
        digest = hashlib.sha256(json.dumps(sizes).encode() + rows.tobytes()).hexdigest()
        np.save(folder / "rows.npy", rows)
        (folder / "index.json").write_text(json.dumps({"sizes": sizes, "sha256": digest}), encoding="utf-8")

    def _read(self) -> dict[str, list[str]]:
        """Class -> its texts, sorted. Raises ConfigError where the set is not whole."""
        corpus, found = CORPORA[self.collection], defaultdict(list)
        try:
            for name, text in corpus.read(self._root):
                found[name].append(text)
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read ({error.strerror}): {self._remedy}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self._root} is damaged ({error!r}): {self._remedy}") from error
        wanted = {name for names in lists(self.collection).values() for name in names}
        count = sum(len(texts) for texts in found.values())
        if found.keys() != wanted or count != corpus.texts:
            raise ConfigError(
                f"{self._root} is not whole, it has {len(found.keys() & wanted)} of {len(wanted)} classes "
                f"and {count} of {corpus.texts} texts: {self._remedy}"
            )
        return {name: found[name] for name in sorted(found)}
