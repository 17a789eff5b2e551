"""Find pictures and their classes in the forms in which known sets were published.

- pickles of arrays: `mini-imagenet-cache-<split>.pkl` (learn2learn), `<split>_images_png.pkl` (tieredImageNet),
  `cifar-100-python`
- ImageNet's training folders, alone or with Ravi & Larochelle's tables

Each function returns None if the folder does not have its form, and raises ConfigError for a damaged file.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from metarun.core.types import Split
from metarun.datasets.storage.archives import names
from metarun.datasets.storage.listed import read_rows
from metarun.datasets.storage.safe_pickle import read_pickle
from metarun.datasets.storage.tree import SPLITS, Classes, Listing, Picture, group, is_picture, merge


def find_cache_pickles(root: Path) -> Listing | None:
    """`mini-imagenet-cache-<split>.pkl`: {"image_data": [n, S, S, 3] uint8, "class_dict": {class: rows}}."""
    files = {split: f"mini-imagenet-cache-{split}.pkl" for split in SPLITS}
    if not all((root / file).is_file() for file in files.values()):
        return None
    listing: Listing = {}
    for split, file in files.items():
        classes = read_pickle(root, file, "class_dict").items()
        listing[split] = _group_rows(root, file, ((row, label) for label, rows in classes for row in rows))
    return listing


def find_png_pickles(root: Path) -> Listing | None:
    """`<split>_images_png.pkl`, a list of encoded pictures, and `<split>_labels.pkl` (Ren et al. 2018)."""
    files = {split: f"{split}_images_png.pkl" for split in SPLITS}
    if not all((root / file).is_file() for file in files.values()):
        return None
    return {
        split: _group_rows(root, file, enumerate(map(int, read_pickle(root, f"{split}_labels.pkl", "label_specific"))))
        for split, file in files.items()
    }


def find_cifar100(root: Path) -> Classes | None:
    """CIFAR-100, as the published archive or unpacked: the 600 pictures of each class, by fine label."""
    archive, folder = root / "cifar-100-python.tar.gz", root / "cifar-100-python"
    if not archive.is_file() and not folder.is_dir():
        return None
    place = root if folder.is_dir() else archive
    labels = read_pickle(place, "cifar-100-python/meta", "fine_label_names")

    def read_part(name: str) -> Classes:
        numbers = read_pickle(place, name, "fine_labels")
        return _group_rows(place, name, ((row, labels[number]) for row, number in enumerate(numbers)))

    return merge(read_part(f"cifar-100-python/{part}") for part in ("train", "test"))


def find_imagenet(root: Path) -> Classes | None:
    """ImageNet's training pictures by class number (n01440764, ...), each class in the published order."""
    for base in (root, root / "train", root / "imagenet"):
        found = base.is_dir() and sorted(path for path in base.glob("n[0-9]*") if len(path.name) == 9 and path.is_dir())
        if found:
            return {
                path.name: [Picture(base, f"{path.name}/{name}") for name in _sort_pictures(path)] for path in found
            }
    return None


def find_ravi_tables(root: Path) -> Listing | None:
    """miniImageNet from ImageNet: n0153282900000005.jpg of the tables is the fifth picture of class n01532829."""
    tables = {split: root / f"{split}.csv" for split in SPLITS}
    classes = find_imagenet(root) if all(table.is_file() for table in tables.values()) else None
    if classes is None:
        return None
    return {
        split: {
            label: [classes[label][int(PurePosixPath(name).stem[9:]) - 1] for name in files]
            for label, files in group(read_rows(table)).items()
            if label in classes
        }
        for split, table in tables.items()
    }


def select(classes: Classes | None, lists: Mapping[Split, Iterable[str]]) -> Listing | None:
    """The classes of each split, by published lists of their names."""
    if classes is None:
        return None
    return {split: {label: classes[label] for label in lists[split] if label in classes} for split in SPLITS}


def _sort_pictures(folder: Path) -> list[str]:
    """The pictures of a folder by the number at the end of their names: n01440764_36.JPEG."""

    def number(name: str) -> tuple[int, str]:
        digits = PurePosixPath(name).stem.rpartition("_")[2]
        return (int(digits) if digits.isdigit() else 0, name)

    return sorted((name for name in names(folder) if is_picture(name)), key=number)


def _group_rows(place: Path, name: str, rows: Iterable[tuple[int, Any]]) -> Classes:
    """The classes of a pickle, from pairs of row and label."""
    return group((Picture(place, name, int(row)), label) for row, label in rows)
