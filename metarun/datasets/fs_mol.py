"""FS-Mol: which molecules are active in an assay? Each of thousands of assays is a task with two unbalanced classes.

Stanley et al. 2021, NeurIPS Datasets and Benchmarks, https://github.com/microsoft/FS-Mol. A molecule's input is a bag
of hashed n-grams of its SMILES string; unlike the authors, we do not use its graph or fingerprint.
"""

import gzip
import hashlib
import json
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import DatasetTraits
from metarun.config.words import count
from metarun.core.types import Episode, Examples, Split, TaskShape, TaskSpec
from metarun.datasets.preprocessing import Strings
from metarun.datasets.sampling.episodes import draw_distinct
from metarun.datasets.sampling.table import Table, format_range
from metarun.datasets.storage.archives import contents, fingerprint, names
from metarun.datasets.storage.cache import cache_dir, ensure
from metarun.datasets.storage.ngrams import Bag
from metarun.datasets.storage.tree import SPLITS

PACKING = 1  # raise it when packing changes: then files of older versions are not used
FILE = re.compile(r"(?:.*/)?(train|valid|test)/(CHEMBL\d+)\.jsonl(\.gz)?")
FOLDERS: dict[str, Split] = {"train": "train", "valid": "val", "test": "test"}
SOURCE = "the folders train, valid and test of https://github.com/microsoft/FS-Mol, or a tar of them"


class Assay(NamedTuple):
    """One assay, which is one task."""

    split: Split
    name: str
    size: int  # measurements


class Packed(NamedTuple):
    """All assays, with each distinct molecule encoded once."""

    rows: Tensor  # [molecules, width] int32
    molecules: Tensor  # [measurements], positions in `rows`, assay by assay
    active: Tensor  # [measurements] bool
    assays: list[Assay]
    sha256: str


@register(
    "dataset", "fs_mol", DatasetTraits(kind="classification", metric="delta_auprc", duplicates=True, published=True)
)
@dataclass(frozen=True)
class FSMol:
    """Assays as tasks; `shots` and `queries` count molecules of both classes. See configs/dataset/fs_mol.yaml."""

    path: str | None
    characters: list[Count]
    width: Count
    data_dir: Path
    device: torch.device

    def prepare(self) -> None:
        """Encode the molecules. Raises ConfigError if the set is missing or damaged."""
        _ = self.packed

    def tasks(self, split: Split, shape: TaskShape) -> "AssaySampler":
        """Raises ConfigError if the shape asks for more molecules than an assay of the split has."""
        packed = self.packed
        here = torch.tensor([assay.split == split for assay in packed.assays])
        sizes = torch.tensor([assay.size for assay in packed.assays])
        chosen = here.repeat_interleave(sizes)
        labels = torch.arange(int(here.sum())).repeat_interleave(sizes[here])
        rows = packed.rows.to(self.device)
        table = Table.from_labels(rows, labels, packed.molecules[chosen], self.device)
        return AssaySampler(table, packed.active[chosen].to(self.device), shape)

    def describe(self) -> str:
        """Where the assays are, and their number. Only reads."""
        if not self._place.exists():
            return f"nothing at {self._place}: {self._remedy}"
        packed_in = cache_dir() / self._cache_name
        if not packed_in.is_dir():
            return f"{self._place}, not packed yet: the first run does it, into {packed_in}"
        lines = [f"{self._place}, packed: {packed_in}"]
        for split in SPLITS:
            sizes = [assay.size for assay in self.packed.assays if assay.split == split]
            number = count(len(sizes), "assay")
            lines.append(f"{split}: {number} of {format_range(sizes)} molecules, {sum(sizes)} in all")
        return "\n".join(lines)

    def notes(self) -> list[str]:
        """Nothing: every assay of a folder is used, or the folder refused."""
        return []

    def identity(self) -> dict[str, Any]:
        """The counts and the hash of everything. Prepares the data."""
        packed = self.packed
        return {
            "name": "fs_mol",
            "assays": {split: sum(assay.split == split for assay in packed.assays) for split in SPLITS},
            "molecules": len(packed.rows),
            "measurements": len(packed.active),
            "ngrams": str(self._bag),
            "sha256": packed.sha256,
        }

    def preprocessing(self) -> dict[str, Any]:
        """Bags of n-grams of the SMILES string."""
        return Strings(words=False, characters=self.characters, width=self.width).to_json()

    @property
    def _bag(self) -> Bag:
        return Bag(self.characters, False, self.width)

    @cached_property
    def _place(self) -> Path:
        """The archive if the folder has it, otherwise the folder."""
        root = Path(self.path).expanduser() if self.path else self.data_dir / "fs-mol-lite"
        archive = root / "fs-mol-lite.tar.xz"
        return archive if archive.is_file() else root

    @property
    def _remedy(self) -> str:
        return f"put {SOURCE} there, or set dataset.path to where they are"

    @property
    def _cache_name(self) -> str:
        return f"fs_mol/{self._bag}-{PACKING}-{fingerprint(self._place)[:16]}"

    @cached_property
    def packed(self) -> Packed:
        """All assays, mapped from the cache; encodes them if need be. Raises ConfigError."""
        if not self._place.exists():
            raise ConfigError(f"dataset=fs_mol: nothing at {self._place}: {self._remedy}")
        folder = ensure(self._cache_name, self._pack)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))

        def map_array(name: str) -> Tensor:
            """Copy on write, and nobody writes: all processes share it."""
            return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))

        assays = [Assay(*assay) for assay in index["assays"]]
        return Packed(map_array("rows"), map_array("molecules"), map_array("active"), assays, index["sha256"])

    def _pack(self, folder: Path) -> None:
        assays, smiles, active = self._read()
        number = {string: i for i, string in enumerate(dict.fromkeys(smiles))}
        arrays = {
            "rows": self._bag.encode([*number], "fs_mol"),
            "molecules": np.array([number[string] for string in smiles], dtype=np.int64),
            "active": np.array(active, dtype=bool),
        }
        digest = hashlib.sha256(json.dumps(assays).encode())
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
            digest.update(array.data)
        index = {"assays": assays, "sha256": digest.hexdigest()}
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    def find_files(self) -> dict[str, re.Match[str]]:
        """The files of assays, each with the match of its name by FILE. Raises ConfigError."""
        return {name: match for name in names(self._place) if (match := FILE.fullmatch(name))}

    def _read(self) -> tuple[list[Assay], list[str], list[bool]]:
        """The sorted assays; and for each measurement, assay by assay, the molecule's SMILES and whether it is active.

        Raises ConfigError.
        """
        files = self.find_files()
        measured: dict[tuple[str, str], list[tuple[str, bool]]] = {}
        for name, content in contents(self._place, files):
            folder, assay, zipped = files[name].groups()
            measured[folder, assay] = self._read_assay(name, content, bool(zipped))
        missing = FOLDERS.keys() - {folder for folder, _ in measured}
        if missing:
            raise ConfigError(f"{self._place} has no assays in {', '.join(sorted(missing))}: {self._remedy}")
        assays = [Assay(FOLDERS[folder], name, len(measured[folder, name])) for folder, name in sorted(measured)]
        smiles, active = zip(*(row for key in sorted(measured) for row in measured[key]))
        return assays, list(smiles), list(active)

    def _read_assay(self, name: str, content: bytes, zipped: bool) -> list[tuple[str, bool]]:
        """SMILES and activity of each measurement. Raises ConfigError."""
        try:
            lines = (gzip.decompress(content) if zipped else content).splitlines()
            rows = [json.loads(line) for line in lines]
            measured = [(str(row["SMILES"]), float(row["Property"]) > 0.5) for row in rows]
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{name} in {self._place} is damaged ({error!r}): {self._remedy}") from error
        if len({active for _, active in measured}) < 2:
            raise ConfigError(f"{name} in {self._place} needs both active and inactive molecules: leave it out")
        return measured


@dataclass(frozen=True)
class AssaySampler:
    """Draws assays; of each, support molecules with the assay's own share of active ones, and queries from the rest."""

    table: Table  # its classes are the assays
    active: Tensor  # [m] bool, of the table's rows
    shape: TaskShape  # `ways` has no meaning

    def __post_init__(self) -> None:
        _, shots, queries = self.shape
        if shots < 2:
            raise ConfigError(f"shots is {shots}: of an assay it counts all molecules of the support, at least 2")
        if shots + queries > self.table.least:
            raise ConfigError(
                f"shots + queries is {shots} + {queries} = {shots + queries}: "
                f"the smallest assay of this split has {count(self.table.least, 'molecule')}"
            )

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", self.table.example_shape, 2, "ngrams", metric="delta_auprc")

    def draw_classes(self, num_tasks: int, generator: torch.Generator) -> Tensor:
        """The assay of each task: [T, 1]."""
        return torch.randint(len(self.table), (num_tasks, 1), generator=generator, device=generator.device)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """support.x [T, shots, width], query.x [T, queries, width]; labels 1 where the molecule is active."""
        table, (_, shots, queries) = self.table, self.shape
        assays = self.draw_classes(num_tasks, generator)[:, 0]
        members = draw_distinct(table.most, table.most, (num_tasks,), generator, below=table.sizes(assays))
        assays, members = assays.to(table.device), members.to(table.device)
        sizes, starts = table.counts[assays][:, None], table.starts[assays][:, None]  # [T, 1]
        real = torch.arange(table.most, device=table.device) < sizes  # [T, most]: padding comes last
        active = self.active[torch.where(real, starts + members, 0)] & real
        # Active molecules in the support, at least one of each class; then each molecule's number within its class.
        wanted = (shots * active.sum(1, keepdim=True) / sizes).round().clamp(1, shots - 1)
        nth = torch.where(active, active.cumsum(1), (real & ~active).cumsum(1))  # from 1
        support = real & (nth <= torch.where(active, wanted, shots - wanted))
        order = (~support).to(torch.uint8).argsort(dim=1, stable=True)[:, : shots + queries]
        x, y = table.take(assays, members.gather(1, order)), active.gather(1, order).long()
        return Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:]))
