"""Small assays in FS-Mol's form, of molecules that are each in one assay only."""

import json
from pathlib import Path
from typing import Any

import torch

from metarun.config.registry import build
from metarun.datasets.assays import Assays
from tests.support.shipped import read_settings

ASSAYS = {  # folder, name -> active and inactive molecules
    ("train", "CHEMBL1"): (3, 9),
    ("train", "CHEMBL2"): (11, 1),
    ("train", "CHEMBL3"): (10, 10),
    ("valid", "CHEMBL4"): (15, 15),
    ("test", "CHEMBL5"): (4, 8),
}


def molecule(assay: str, number: int) -> str:
    """No other has the same n-grams."""
    digits = f"{number:03}"
    return f"C{assay[-1]}({digits[0]})[{digits[1]}]={digits[2]}"


def files(times: int = 1) -> dict[str, bytes]:
    """The active ones first; each assay so many times as large."""
    found = {}
    for (folder, name), sizes in ASSAYS.items():
        active, inactive = (times * size for size in sizes)
        rows = [
            {"SMILES": molecule(name, number), "Property": str(float(number < active)), "Assay_ID": name}
            for number in range(active + inactive)
        ]
        found[f"{folder}/{name}.jsonl"] = "".join(json.dumps(row) + "\n" for row in rows).encode()
    return found


def write_assays(root: Path, times: int = 1) -> Path:
    for name, content in files(times).items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def dataset(path: Path | None, **changes: Any) -> Assays:
    """The shipped configs/dataset/fs_mol.yaml, with n-grams of 2 and 3 characters."""
    values = read_settings("assays", "fs_mol") | {"characters": [2, 3], "path": path and str(path), **changes}
    data_dir = values.pop("data_dir", Path("nowhere"))
    built = build("dataset", values, data_dir=data_dir, device=torch.device("cpu"))
    assert isinstance(built, Assays)
    return built
