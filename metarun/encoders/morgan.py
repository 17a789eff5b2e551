"""Morgan fingerprints: which circular fragments a molecule has, hashed to a fixed number of bits. A rule; nothing is
learned.

Rogers & Hahn 2010, https://doi.org/10.1021/ci100050t, as RDKit computes them (BSD licence).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Whole
from metarun.config.traits import EncoderTraits
from metarun.encoders.files import scale_to_unit


@register("encoder", "morgan", EncoderTraits(reads="strings", learned_from="nothing", needs=("rdkit",)))
@dataclass(frozen=True)
class Morgan:
    """1 where a molecule has a fragment with this hash, 0 elsewhere."""

    radius: Whole
    bits: Count
    unit_length: bool
    device: torch.device

    @property
    def size(self) -> int:
        return self.bits

    def encode(self, items: Sequence[str]) -> Tensor:
        """n SMILES strings -> [n, bits]. Raises ConfigError if one is no molecule."""
        rows = np.zeros((len(items), self.bits), dtype=np.float32)
        for row, smiles in zip(rows, items):
            row[:] = self._generator.GetFingerprintAsNumPy(read_molecule(smiles))
        return scale_to_unit(torch.from_numpy(rows), self.unit_length)

    def check(self, item: str) -> None:
        """Raises ConfigError if the string is no molecule."""
        read_molecule(item)

    def identity(self) -> dict[str, Any]:
        return {"radius": self.radius, "bits": self.bits, "unit_length": self.unit_length}

    @cached_property
    def _generator(self) -> Any:
        from rdkit.Chem.rdFingerprintGenerator import GetMorganGenerator

        return GetMorganGenerator(radius=self.radius, fpSize=self.bits)


def read_molecule(smiles: str) -> Any:
    """Read a molecule, of any valences: FS-Mol has some that RDKit's own check refuses. Raises ConfigError."""
    from rdkit import Chem, rdBase

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles, sanitize=False)
        try:
            molecule.UpdatePropertyCache(strict=False)
            Chem.SanitizeMol(molecule, Chem.SANITIZE_ALL ^ Chem.SANITIZE_PROPERTIES)
        except (AttributeError, ValueError) as error:  # None, or what RDKit cannot make sense of
            raise ConfigError(f"encoder=morgan: {smiles!r} is no molecule in the form of SMILES") from error
    return molecule
