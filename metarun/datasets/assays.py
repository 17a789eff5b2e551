"""Assays as tasks: which molecules are active, or how much? A person's own, in a table, and FS-Mol's thousands.

FS-Mol: Stanley et al. 2021, NeurIPS Datasets and Benchmarks, https://github.com/microsoft/FS-Mol; each assay is a task
with two unbalanced classes. A molecule's input is a bag of hashed n-grams of its SMILES string; unlike the authors, we
do not use its graph or fingerprint.
"""

import gzip
import json
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from numpy.typing import NDArray

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Fraction, Whole
from metarun.config.traits import DatasetTraits
from metarun.config.words import count
from metarun.core.types import Split, TaskShape
from metarun.datasets.grouped import Grouped
from metarun.datasets.preprocessing import Strings
from metarun.datasets.sampling.measured import AssaySampler, ValueSampler
from metarun.datasets.storage.archives import contents, fingerprint, names
from metarun.datasets.storage.ngrams import Bag
from metarun.datasets.storage.rows import ROWS, AssayTable, Example, find_rows
from metarun.datasets.storage.splits import Found

FILE = re.compile(r"(?:.*/)?(train|valid|test)/(CHEMBL\d+)\.jsonl(\.gz)?")
FOLDERS: dict[str, Split] = {"train": "train", "valid": "val", "test": "test"}
TRAIN_AND_TEST: tuple[Split, Split] = ("train", "test")
SOURCE = "the folders train, valid and test of https://github.com/microsoft/FS-Mol, or a tar of them"


@register(
    "dataset",
    "assays",
    DatasetTraits(
        kind="classification",
        metric="delta_auprc",
        duplicates=True,
        published=True,
        continuous=True,
        baselines=("tanimoto", "forest"),
    ),
)
@dataclass(frozen=True)
class Assays(Grouped):
    """Assays as tasks; `shots` and `queries` count molecules of both classes. See configs/dataset/assays.yaml."""

    collection: Literal["assays", "fs_mol"]
    path: str | None
    values: Literal["binary", "continuous"]
    split_fractions: list[Fraction]
    split_seed: Whole
    small_classes: Literal["refuse", "skip"]
    characters: list[Count]
    width: Count
    data_dir: Path
    device: torch.device

    nouns = ("assay", "molecule")
    wanted = "a table with a column smiles and a column for each assay"

    def prepare(self) -> None:
        """Encode the molecules. Raises ConfigError if a file is missing or damaged, or an assay cannot be used."""
        alike, groups = self._alike, self.packed.groups
        if alike and self.small_classes == "refuse":
            raise ConfigError(
                f"{self.root}: {count(len(alike), 'assay')} without both active and inactive molecules, for example "
                f"{groups[alike[0]].name}: leave them out, or set dataset.small_classes=skip"
            )

    def tasks(self, split: Split, shape: TaskShape) -> AssaySampler | ValueSampler:
        """Raises ConfigError if the shape asks for more molecules than an assay of the split has."""
        self.prepare()
        table, values = self.make_table(self.choose(split, shape))
        if self.values == "continuous":
            return ValueSampler(table, values, shape, "ngrams")
        return AssaySampler(table, values[:, 0] > 0.5, shape)

    def usable(self, groups: Sequence[int]) -> list[int]:
        alike = set(self._alike)
        return [group for group in groups if group not in alike]

    def list_doubts(self) -> Iterator[str]:
        """Assays that are left out, molecules that were measured again, and those of test assays in training ones."""
        packed = self.packed
        if self._alike:
            yield f"{count(len(self._alike), 'assay')} left out, without both active and inactive molecules"
        pairs, which = (packed.owners * len(packed.rows) + packed.members).unique(return_inverse=True)
        if len(pairs) < len(which):
            low, high = (torch.full((len(pairs),), torch.nan) for _ in range(2))
            low.scatter_reduce_(0, which, packed.values[:, 0], "amin", include_self=False)
            high.scatter_reduce_(0, which, packed.values[:, 0], "amax", include_self=False)
            again, differing = count(int((which.bincount() > 1).sum()), "molecule"), int((low != high).sum())
            yield f"{again} several times in one assay, {differing} of them with different values"
        splits = self.split_groups()
        train, test = (
            packed.members[torch.isin(packed.owners, torch.tensor(splits[split]))].unique() for split in TRAIN_AND_TEST
        )
        if shared := int(torch.isin(test, train).sum()):
            yield f"{shared} of {count(len(test), 'molecule')} in the test are in training too: only its assays are new"

    def preprocessing(self) -> dict[str, Any]:
        """Bags of n-grams of the SMILES string."""
        return Strings(False, self.characters, self.width, self.values == "continuous").to_json()

    @cached_property
    def _alike(self) -> list[int]:
        """The assays whose molecules are all active, or all inactive."""
        if self.values == "continuous":
            return []
        packed = self.packed
        sizes = torch.tensor([group.size for group in packed.groups])
        active = packed.owners[packed.values[:, 0] > 0.5].bincount(minlength=len(sizes))
        found: list[int] = ((active == 0) | (active == sizes)).nonzero().flatten().tolist()
        return found

    def encode(self, keys: Sequence[str]) -> NDArray[Any]:
        return self._bag.encode(keys, self.collection)

    @property
    def form(self) -> str:
        return str(self._bag) if self.values == "binary" else f"{self._bag}-continuous"

    @property
    def _bag(self) -> Bag:
        return Bag(self.characters, False, self.width)

    @property
    def root(self) -> Path:
        """The archive of FS-Mol if the folder has it, otherwise the folder."""
        if not self.published:
            return super().root
        root = Path(self.path).expanduser() if self.path else self.data_dir / "fs-mol-lite"
        archive = root / "fs-mol-lite.tar.xz"
        return archive if archive.is_file() else root

    @property
    def remedy(self) -> str:
        return f"put {SOURCE} there, or set dataset.path to where they are" if self.published else super().remedy

    @property
    def source(self) -> str:
        return fingerprint(self.root) if self.published else super().source

    def find(self) -> Found[Example]:
        if self.published:
            return self._read_published()
        read = AssayTable(self.values == "continuous")
        found = find_rows(self.root, ROWS, read, self.nouns[0], self.wanted)
        return Found(found.listing, found.origin, [*found.notes, *read.notes])

    def find_files(self) -> dict[str, re.Match[str]]:
        """The files of FS-Mol's assays, each with the match of its name by FILE. Raises ConfigError."""
        return {name: match for name in names(self.root) if (match := FILE.fullmatch(name))}

    def _read_published(self) -> Found[Example]:
        """The assays of FS-Mol, sorted. Raises ConfigError."""
        files, left = self.find_files(), 0
        found: dict[Split | None, dict[str, list[Example]]] = {split: {} for split in FOLDERS.values()}
        for name, content in sorted(contents(self.root, files)):
            folder, assay, zipped = files[name].groups()
            examples = self._read_assay(name, content, bool(zipped))
            measured = [example for example in examples if not math.isnan(example.values[0])]
            left += len(examples) - len(measured)
            if measured:
                found[FOLDERS[folder]][assay] = measured
        missing = [folder for folder, split in FOLDERS.items() if not found[split]]
        if missing:
            raise ConfigError(f"{self.root} has no assays in {', '.join(missing)}: {self.remedy}")
        return Found(found, "as published", [f"{count(left, 'measurement')} without a value, left out"] if left else [])

    def _measure(self, row: dict[str, Any]) -> float:
        if self.values == "continuous":
            return float(row["LogRegressionProperty"] or "nan")  # minus the logarithm of a concentration
        return float(float(row["Property"]) > 0.5)

    def _read_assay(self, name: str, content: bytes, zipped: bool) -> list[Example]:
        """The measurements of an assay. Raises ConfigError."""
        try:
            lines = (gzip.decompress(content) if zipped else content).splitlines()
            rows = [json.loads(line) for line in lines]
            return [Example(str(row["SMILES"]), (self._measure(row),), str(row["SMILES"])) for row in rows]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{name} in {self.root} is damaged ({error!r}): {self.remedy}") from error
