"""Which pictures belong to which class of which split, for every form in which users have such data.

Told apart by what is there, never by being asked:

- class folders: `<class>/<picture>`, in `train`, `val` and `test` or all together; each may be a zip or tar
- tables: `train.csv`, `val.csv` and `test.csv` (Ravi & Larochelle; LibFewShot) or one `labels.csv`, of
  file names and labels, beside pictures in folders, zips or tars
- pickles of arrays: `mini-imagenet-cache-<split>.pkl` (learn2learn), `<split>_images_png.pkl` (tieredImageNet),
  `cifar-100-python`
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, get_args

import numpy as np

from metarun.config.errors import ConfigError
from metarun.core.types import Split
from metarun.datasets.storage.archives import contents, is_archive, names
from metarun.datasets.storage.safe_pickle import unpickled

SPLITS: tuple[Split, ...] = get_args(Split)
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SPELLINGS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}


class Picture(NamedTuple):
    """Where one is: a file in a folder or archive, or a row of a pickle there."""

    place: Path
    name: str
    row: int | None = None


Classes = dict[str, list[Picture]]  # class -> its pictures
Listing = dict[Split, Classes]


def whole(root: Path) -> Classes | None:
    """Class folders, or one table, without splits."""
    table = root / "labels.csv"
    if table.is_file():
        return _labelled([table], _pictures(_places(root)))[table]
    return merged(_class_folders(place) for place in _places(root))


def divided(root: Path) -> Listing | None:
    """Tables or class folders by split; None where there are neither."""
    tables = {split: _first(root, [f"{name}.csv" for name in SPELLINGS[split]]) for split in SPLITS}
    if all(tables.values()):
        pictures = _pictures(_places(root))
        found = _labelled([table for table in tables.values() if table], pictures)
        return {split: found[table] for split, table in tables.items() if table}
    places = {split: _first(root, _with_archives(SPELLINGS[split])) for split in SPLITS}
    if all(places.values()):
        return {split: _class_folders(place) for split, place in places.items() if place}
    return None


def cached_pickles(root: Path) -> Listing | None:
    """`mini-imagenet-cache-<split>.pkl`: {"image_data": [n, S, S, 3] uint8, "class_dict": {class: rows}}."""
    files = {split: f"mini-imagenet-cache-{split}.pkl" for split in SPLITS}
    if not all((root / file).is_file() for file in files.values()):
        return None
    listing: Listing = {}
    for split, file in files.items():
        classes = of(root, file, "class_dict").items()
        listing[split] = _by_label(root, file, ((row, label) for label, rows in classes for row in rows))
    return listing


def png_pickles(root: Path) -> Listing | None:
    """`<split>_images_png.pkl`, a list of encoded pictures, and `<split>_labels.pkl` (Ren et al. 2018)."""
    files = {split: f"{split}_images_png.pkl" for split in SPLITS}
    if not all((root / file).is_file() for file in files.values()):
        return None
    return {
        split: _by_label(root, file, enumerate(map(int, of(root, f"{split}_labels.pkl", "label_specific"))))
        for split, file in files.items()
    }


def cifar100(root: Path) -> Classes | None:
    """CIFAR-100 as published, in one archive or unpacked: all 600 pictures of each class, by their fine names."""
    archive, folder = root / "cifar-100-python.tar.gz", root / "cifar-100-python"
    if not archive.is_file() and not folder.is_dir():
        return None
    place = root if folder.is_dir() else archive
    labels = of(place, "cifar-100-python/meta", "fine_label_names")
    parts = ("cifar-100-python/train", "cifar-100-python/test")
    return merged(
        _by_label(place, part, ((row, labels[i]) for row, i in enumerate(of(place, part, "fine_labels"))))
        for part in parts
    )


def imagenet(root: Path) -> Classes | None:
    """ImageNet's training pictures, by the numbers of their classes (n01440764, ...), in the published order."""
    for base in (root, root / "train", root / "imagenet"):
        found = base.is_dir() and sorted(path for path in base.glob("n[0-9]*") if len(path.name) == 9 and path.is_dir())
        if found:
            return {path.name: [Picture(base, f"{path.name}/{name}") for name in _numbered(path)] for path in found}
    return None


def ravi(root: Path) -> Listing | None:
    """miniImageNet from ImageNet: its tables' n0153282900000005.jpg is the fifth picture of class n01532829."""
    tables = {split: root / f"{split}.csv" for split in SPLITS}
    classes = imagenet(root) if all(table.is_file() for table in tables.values()) else None
    if classes is None:
        return None
    return {
        split: {
            label: [classes[label][int(PurePosixPath(name).stem[9:]) - 1] for name in files]
            for label, files in _grouped(_table(table)).items()
            if label in classes
        }
        for split, table in tables.items()
    }


def chosen(classes: Classes | None, lists: Mapping[Split, Iterable[str]]) -> Listing | None:
    """The classes that published lists put in each split."""
    if classes is None:
        return None
    return {split: {label: classes[label] for label in lists[split] if label in classes} for split in SPLITS}


def merged(parts: Iterable[Classes]) -> Classes | None:
    together: Classes = {}
    for part in parts:
        for label, pictures in part.items():
            together.setdefault(label, []).extend(pictures)
    return together or None


def _numbered(folder: Path) -> list[str]:
    """n01440764_36.JPEG and so on, by their numbers."""

    def number(name: str) -> tuple[int, str]:
        digits = PurePosixPath(name).stem.rpartition("_")[2]
        return (int(digits) if digits.isdigit() else 0, name)

    return sorted((name for name in names(folder) if is_picture(name)), key=number)


def is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in PICTURES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _class_folders(place: Path) -> Classes:
    """The folder next to each picture is its class."""
    found: Classes = {}
    for name in names(place):
        label = PurePosixPath(name).parent.name
        if is_picture(name) and label:
            found.setdefault(label, []).append(Picture(place, name))
    return found


def _places(root: Path) -> list[Path]:
    """The folder itself where it has folders of pictures, else every archive in it."""
    in_folders = any(is_picture(name) and PurePosixPath(name).parent.name for name in names(root))
    archives = sorted(path for path in root.iterdir() if is_archive(path))
    return [root] if in_folders or not archives else archives


def _first(root: Path, options: Iterable[str]) -> Path | None:
    return next((root / name for name in options if (root / name).exists()), None)


def _with_archives(spellings: Iterable[str]) -> Iterator[str]:
    for name in spellings:
        yield from (name, *(f"{name}{ending}" for ending in (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")))


def _pictures(places: list[Path]) -> dict[str, Picture]:
    """By their path in the place, and by their file name where no other picture has it."""
    found: dict[str, Picture] = {}
    bare: dict[str, list[Picture]] = {}
    for place in places:
        for name in filter(is_picture, names(place)):
            picture = found[name] = Picture(place, name)
            bare.setdefault(PurePosixPath(name).name, []).append(picture)
    return {name: pictures[0] for name, pictures in bare.items() if len(pictures) == 1} | found


def _labelled(tables: Iterable[Path], pictures: dict[str, Picture]) -> dict[Path, Classes]:
    found = {}
    for table in tables:
        classes = _grouped(_table(table))
        missing = [name for files in classes.values() for name in files if name not in pictures]
        if missing:
            raise ConfigError(
                f"{table} lists {len(missing)} pictures that are not in {table.parent}, as {missing[0]}: "
                "put them there, in a folder, zip or tar"
            )
        found[table] = {label: [pictures[name] for name in files] for label, files in classes.items()}
    return found


def _table(file: Path) -> list[tuple[str, str]]:
    """File name and label of each row. Raises ConfigError."""
    _, content = next(contents(file.parent, [file.name]))
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig", errors="replace"))))
    columns = [next((key for key in options if rows and key in rows[0]), None) for options in COLUMNS]
    if None in columns:
        raise ConfigError(f"{file} is no table of pictures: its first line must name the columns filename,label")
    return [(str(row[columns[0]]), str(row[columns[1]])) for row in rows]


COLUMNS: tuple[tuple[str, ...], tuple[str, ...]] = (("filename", "file", "image", "path"), ("label", "class"))


def _grouped(rows: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    classes: dict[str, list[str]] = {}
    for name, label in rows:
        classes.setdefault(label, []).append(name)
    return classes


def _by_label(place: Path, name: str, rows: Iterable[tuple[int, Any]]) -> Classes:
    classes: Classes = {}
    for row, label in rows:
        classes.setdefault(str(label), []).append(Picture(place, name, int(row)))
    return classes


def of(place: Path, name: str, *fields: str) -> Any:
    """What a pickled dictionary in a folder or archive has under the first of the fields that it knows; without
    fields, whatever was pickled. Raises ConfigError."""
    where = f"{place / name}"
    content = next((content for _, content in contents(place, [name])), None)
    if content is None:
        raise ConfigError(f"{where} is missing: get a whole copy")
    found = unpickled(content, where)
    for field in fields:
        if isinstance(found, dict) and field in found:
            return found[field]
    if fields and isinstance(found, dict):
        raise ConfigError(f"{where} is not what its name says: it has no {' or '.join(fields)}")
    return found


def rows_of(place: Path, name: str) -> Sequence[np.ndarray]:
    """The pictures of a pickle: arrays [S, S, 3], or encoded ones."""
    found = of(place, name, "image_data", "data")
    if isinstance(found, np.ndarray) and found.ndim == 2:  # CIFAR: [n, 3 * 32 * 32]
        found = found.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return found
