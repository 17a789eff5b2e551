"""Classes of short texts: a person's own, in a table, and published sets of what people want from an assistant."""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from numpy.typing import NDArray

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Fraction, Whole
from metarun.config.traits import DatasetTraits
from metarun.core.types import Part, TaskShape
from metarun.datasets.grouped import Grouped
from metarun.datasets.preprocessing import Strings
from metarun.datasets.sampling.augment import AsStored
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.storage.archives import fingerprint
from metarun.datasets.storage.known_sets import read_class_lists
from metarun.datasets.storage.ngrams import Bag
from metarun.datasets.storage.rows import ROWS, Example, find_rows, read_text_table
from metarun.datasets.storage.splits import Found


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


@register("dataset", "texts", DatasetTraits(kind="classification", published=True, pooled=True, baselines=("tf_idf",)))
@dataclass(frozen=True)
class Texts(Grouped):
    """Classes of short texts, as bags of hashed n-grams; see configs/dataset/texts.yaml."""

    collection: Literal["texts", "clinc150", "banking77"]
    path: str | None
    split_fractions: list[Fraction]
    split_seed: Whole
    small_classes: Literal["refuse", "skip"]
    words: bool
    characters: list[Count]
    width: Count
    data_dir: Path
    device: torch.device

    nouns = ("class", "text")
    wanted = "a table of texts and labels"

    def tasks(self, split: Part, shape: TaskShape) -> EpisodeSampler:
        """Episodes of rows [width]. Raises ConfigError if the shape asks for more than the split has."""
        classes = self.choose(split, shape, shape.ways)
        names = [self.packed.groups[number].name for number in classes]
        return EpisodeSampler(
            self.make_table(classes)[0], shape, transform=AsStored("ngrams"), split=split, names=names
        )

    def preprocessing(self) -> dict[str, Any]:
        """Bags of n-grams of the text."""
        return Strings(self.words, self.characters, self.width).to_json()

    def encode(self, keys: Sequence[str]) -> NDArray[Any]:
        return self._bag.encode(keys, self.collection)

    @property
    def form(self) -> str:
        return str(self._bag)

    @property
    def _bag(self) -> Bag:
        return Bag(self.characters, self.words, self.width)

    @property
    def root(self) -> Path:
        if self.path or not self.published:
            return super().root
        return self.data_dir / "text-intents" / self.collection

    @property
    def remedy(self) -> str:
        if not self.published:
            return super().remedy
        return f"put {CORPORA[self.collection].source} there, or set dataset.path to the folder that has it"

    @property
    def source(self) -> str:
        return fingerprint(self.root) if self.published else super().source

    def find(self) -> Found[Example]:
        if not self.published:
            return find_rows(self.root, ROWS, read_text_table, self.nouns[0], self.wanted)
        texts = self._read_published()
        lists = read_class_lists(self.collection).items()
        return Found(
            {
                split: {name: [Example(text, (), text) for text in texts[name]] for name in names}
                for split, names in lists
            },
            "as published",
        )

    def _read_published(self) -> dict[str, list[str]]:
        """Class -> its texts. Raises ConfigError if the set is damaged or not whole."""
        corpus, found = CORPORA[self.collection], defaultdict(list)
        try:
            for name, text in corpus.read(self.root):
                found[name].append(text.strip())
        except OSError as error:
            raise ConfigError(f"{error.filename} cannot be read ({error.strerror}): {self.remedy}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{self.root} is damaged ({error!r}): {self.remedy}") from error
        wanted = {name for names in read_class_lists(self.collection).values() for name in names}
        total = sum(len(texts) for texts in found.values())
        if found.keys() != wanted or total != corpus.texts:
            raise ConfigError(
                f"{self.root} is not whole, it has {len(found.keys() & wanted)} of {len(wanted)} classes "
                f"and {total} of {corpus.texts} texts: {self.remedy}"
            )
        return found
