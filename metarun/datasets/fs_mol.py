"""FS-Mol: which molecules are active in an assay? Each of thousands of assays is a task of two unequal classes.

Stanley et al. 2021, NeurIPS Datasets and Benchmarks, https://github.com/microsoft/FS-Mol. Of each molecule only its
SMILES string is read, as a bag of hashed n-grams.
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
from metarun.core.types import Episode, Examples, Split, TaskShape, TaskSpec
from metarun.datasets.sampling.episodes import distinct
from metarun.datasets.sampling.table import Table, span
from metarun.datasets.storage.archives import contents, fingerprint, names
from metarun.datasets.storage.cache import cache_dir, prepared
from metarun.datasets.storage.layouts import SPLITS
from metarun.datasets.storage.ngrams import Bag

PACKING = 1  # raise it when packing changes, so that older files are not taken for new ones
FILE = re.compile(r"(?:.*/)?(train|valid|test)/(CHEMBL\d+)\.jsonl(\.gz)?")
SOURCE = "the folders train, valid and test of https://github.com/microsoft/FS-Mol, or a tar of them"


class Assay(NamedTuple):
    split: Split
    name: str
    size: int  # measurements


class Packed(NamedTuple):
    rows: Tensor  # [molecules, width] int32
    molecules: Tensor  # [measurements], assay by assay
    active: Tensor  # [measurements] bool
    assays: list[Assay]
    sha256: str


@register("dataset", "fs_mol", DatasetTraits(kind="classification", metric="delta_auprc"))
@dataclass(frozen=True)
class FSMol:
    """Assays as tasks, `shots` and `queries` being molecules of both kinds; see configs/dataset/fs_mol.yaml."""

    path: str | None
    characters: list[Count]
    width: Count
    data_dir: Path
    device: torch.device

    def prepare(self) -> None:
        """Raises ConfigError where there is nothing, or it is damaged."""
        _ = self._packed

    def tasks(self, split: Split, shape: TaskShape) -> "AssaySampler":
        """Raises ConfigError where the shape asks for more than there is."""
        packed = self._packed
        here = torch.tensor([assay.split == split for assay in packed.assays])
        sizes = torch.tensor([assay.size for assay in packed.assays])
        chosen = here.repeat_interleave(sizes)
        labels = torch.arange(int(here.sum())).repeat_interleave(sizes[here])
        rows = packed.rows.to(self.device)
        table = Table.of(rows, labels, packed.molecules[chosen], self.device)
        return AssaySampler(table, packed.active[chosen].to(self.device), shape)

    def describe(self) -> str:
        """Where the assays are and how many. Only reads."""
        if not self._place.exists():
            return f"nothing at {self._place}: {self._remedy}"
        packed_in = cache_dir() / self._cache_name
        if not packed_in.is_dir():
            return f"{self._place}, not packed yet: the first run does it, into {packed_in}"
        lines = [f"{self._place}, packed: {packed_in}"]
        for split in SPLITS:
            sizes = [assay.size for assay in self._packed.assays if assay.split == split]
            lines.append(f"{split}: {len(sizes)} assays of {span(sizes)} molecules, {sum(sizes)} in all")
        return "\n".join(lines)

    def identity(self) -> dict[str, Any]:
        """The counts and the hash of everything. Prepares the data."""
        packed = self._packed
        return {
            "name": "fs_mol",
            "assays": {split: sum(assay.split == split for assay in packed.assays) for split in SPLITS},
            "molecules": len(packed.rows),
            "measurements": len(packed.active),
            "ngrams": str(self._bag),
            "sha256": packed.sha256,
        }

    @property
    def _bag(self) -> Bag:
        return Bag(self.characters, False, self.width)

    @cached_property
    def _place(self) -> Path:
        """The archive, where the folder has it, or the folder."""
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
    def _packed(self) -> Packed:
        if not self._place.exists():
            raise ConfigError(f"dataset=fs_mol: nothing at {self._place}: {self._remedy}")
        folder = prepared(self._cache_name, self._pack)
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))

        def mapped(name: str) -> Tensor:
            """Copied where it is written, which it never is: so all processes share it."""
            return torch.from_numpy(np.load(folder / f"{name}.npy", mmap_mode="c"))

        assays = [Assay(*assay) for assay in index["assays"]]
        return Packed(mapped("rows"), mapped("molecules"), mapped("active"), assays, index["sha256"])

    def _pack(self, folder: Path) -> None:
        assays, smiles, active = self._read()
        number = {string: i for i, string in enumerate(dict.fromkeys(smiles))}
        arrays = {
            "rows": self._bag.rows([*number], "fs_mol"),
            "molecules": np.array([number[string] for string in smiles], dtype=np.int64),
            "active": np.array(active, dtype=bool),
        }
        digest = hashlib.sha256(json.dumps(assays).encode())
        for name, array in arrays.items():
            np.save(folder / f"{name}.npy", array)
            digest.update(array.data)
        index = {"assays": assays, "sha256": digest.hexdigest()}
        (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")

    def _names(self) -> dict[str, re.Match[str]]:
        """The files of assays and what their names say."""
        return {name: match for name in names(self._place) if (match := FILE.fullmatch(name))}

    def _read(self) -> tuple[list[Assay], list[str], list[bool]]:
        """The assays, sorted, and of each measurement, assay by assay, the molecule's SMILES and whether it is active.

        Raises ConfigError.
        """
        found = self._names()
        measured: dict[tuple[str, str], list[tuple[str, bool]]] = {}
        for name, content in contents(self._place, found):
            folder, assay, zipped = found[name].groups()
            try:
                lines = (gzip.decompress(content) if zipped else content).splitlines()
                rows = [json.loads(line) for line in lines]
                measured[folder, assay] = [(str(row["SMILES"]), float(row["Property"]) > 0.5) for row in rows]
            except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
                raise ConfigError(f"{name} in {self._place} is damaged ({error!r}): {self._remedy}") from error
            if len({active for _, active in measured[folder, assay]}) < 2:
                raise ConfigError(
                    f"{name} in {self._place} needs molecules of both kinds, active and not: leave it out"
                )
        parts: dict[str, Split] = {"train": "train", "valid": "val", "test": "test"}
        missing = parts.keys() - {folder for folder, _ in measured}
        if missing:
            raise ConfigError(f"{self._place} has no assays in {', '.join(sorted(missing))}: {self._remedy}")
        assays = [Assay(parts[folder], name, len(measured[folder, name])) for folder, name in sorted(measured)]
        smiles, active = zip(*(row for key in sorted(measured) for row in measured[key]))
        return assays, list(smiles), list(active)


@dataclass(frozen=True)
class AssaySampler:
    """Assays drawn at random; of each, support molecules in its own balance of active ones, and queries of the rest."""

    table: Table  # its classes are the assays
    active: Tensor  # [m] bool, of the table's rows
    shape: TaskShape  # its ways have no meaning

    def __post_init__(self) -> None:
        _, shots, queries = self.shape
        if shots < 2:
            raise ConfigError(f"shots is {shots}: of an assay it is all molecules of the support, at least 2")
        if shots + queries > self.table.least:
            raise ConfigError(
                f"shots + queries is {shots} + {queries} = {shots + queries}: "
                f"the smallest assay of this split has {self.table.least} molecules"
            )

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", self.table.example_shape, 2, "ngrams", metric="delta_auprc")

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """support.x [T, shots, width], query.x [T, queries, width]; labels 1 where the molecule is active."""
        table, (_, shots, queries) = self.table, self.shape
        assays = torch.randint(len(table), (num_tasks,), generator=generator, device=generator.device)
        members = distinct(table.most, table.most, (num_tasks,), generator, below=table.sizes(assays))
        assays, members = assays.to(table.device), members.to(table.device)
        sizes, starts = table.counts[assays][:, None], table.starts[assays][:, None]  # [T, 1]
        real = torch.arange(table.most, device=table.device) < sizes  # [T, most]: what an assay lacks comes last
        active = self.active[torch.where(real, starts + members, 0)] & real
        wanted = (shots * active.sum(1, keepdim=True) / sizes).round().clamp(1, shots - 1)  # active ones in the support
        nth = torch.where(active, active.cumsum(1), (real & ~active).cumsum(1))  # of its kind, from 1
        support = real & (nth <= torch.where(active, wanted, shots - wanted))
        order = (~support).to(torch.uint8).argsort(dim=1, stable=True)[:, : shots + queries]
        x, y = table.take(assays, members.gather(1, order)), active.gather(1, order).long()
        return Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:]))
