"""Find pictures and their classes in the forms that users have: class folders, or tables of file names and labels.

The form is recognised by what is there:

- class folders: `<class>/<picture>`, in `train`, `val` and `test` or all together; each may be a zip or tar
- tables: `train.csv`, `val.csv` and `test.csv` (Ravi & Larochelle; LibFewShot) or one `labels.csv`, of
  file names and labels, beside pictures in folders, zips or tars
"""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar, get_args

from metarun.config.errors import ConfigError
from metarun.config.words import count
from metarun.core.types import Split
from metarun.datasets.storage.archives import ARCHIVES, contents, is_archive, names

SPLITS: tuple[Split, ...] = get_args(Split)
PICTURES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm")
SPELLINGS: dict[Split, tuple[str, ...]] = {
    "train": ("train",),
    "val": ("val", "valid", "validation"),
    "test": ("test",),
}
FILE_COLUMNS, LABEL_COLUMNS = ("filename", "file", "image", "path"), ("label", "class")  # of a table


class Picture(NamedTuple):
    """Where a picture is: a file `name` in a folder or archive, or a row of the pickle of that name."""

    place: Path
    name: str
    row: int | None = None

    def __str__(self) -> str:
        return f"{self.place.name}/{self.name}" + ("" if self.row is None else f", row {self.row}")


Classes = dict[str, list[Picture]]  # class -> its pictures
Listing = dict[Split, Classes]
Member = TypeVar("Member")


def find_splits(root: Path) -> Listing | None:
    """Tables or class folders, one for each split. None if there are neither. Raises ConfigError."""
    tables = {split: _find_first(root, [f"{name}.csv" for name in SPELLINGS[split]]) for split in SPLITS}
    if all(tables.values()):
        pictures = _index_pictures(_find_places(root))
        return {split: _read_table(table, pictures) for split, table in tables.items() if table}
    places = {split: _find_first(root, _name_places(SPELLINGS[split])) for split in SPLITS}
    if all(places.values()):
        return {split: _read_class_folders(place) for split, place in places.items() if place}
    return None


def find_classes(root: Path) -> Classes | None:
    """One table, or class folders, without splits. None if there are no pictures. Raises ConfigError."""
    table = root / "labels.csv"
    if table.is_file():
        return _read_table(table, _index_pictures(_find_places(root)))
    return merge(_read_class_folders(place) for place in _find_places(root))


def merge(parts: Iterable[Classes]) -> Classes | None:
    """The classes of all parts; None if there are none."""
    merged: Classes = {}
    for part in parts:
        for label, pictures in part.items():
            merged.setdefault(label, []).extend(pictures)
    return merged or None


def group(rows: Iterable[tuple[Member, object]]) -> dict[str, list[Member]]:
    """Members by label, from pairs of member and label."""
    groups: dict[str, list[Member]] = {}
    for member, label in rows:
        groups.setdefault(str(label), []).append(member)
    return groups


def is_picture(name: str) -> bool:
    """Whether the ending is a picture's; hidden files and those that macOS adds to zips are none."""
    path = PurePosixPath(name)
    return path.suffix.lower() in PICTURES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def read_rows(table: Path) -> list[tuple[str, str]]:
    """File name and label of each row of a CSV file. Raises ConfigError."""
    _, content = next(contents(table.parent, [table.name]))
    rows = list(csv.DictReader(io.StringIO(content.decode("utf-8-sig", errors="replace"))))
    header = rows[0] if rows else {}
    file = next((column for column in FILE_COLUMNS if column in header), None)
    label = next((column for column in LABEL_COLUMNS if column in header), None)
    if file is None or label is None:
        raise ConfigError(f"{table} is no table of pictures: its first line must name the columns filename,label")
    return [(str(row[file]), str(row[label])) for row in rows]


def _read_table(table: Path, pictures: dict[str, Picture]) -> Classes:
    """The classes of a table whose file names are keys of `pictures`. Raises ConfigError."""
    rows = read_rows(table)
    missing = [name for name, _ in rows if name not in pictures]
    if missing:
        raise ConfigError(
            f"{table} lists {count(len(missing), 'picture')} not found in {table.parent}, for example {missing[0]}: "
            "put them there, in a folder, zip or tar"
        )
    return group((pictures[name], label) for name, label in rows)


def _read_class_folders(place: Path) -> Classes:
    """The class of a picture is the folder that holds it."""
    pictures = (name for name in names(place) if is_picture(name))
    labels = ((Picture(place, name), PurePosixPath(name).parent.name) for name in pictures)
    return group((picture, label) for picture, label in labels if label)


def _index_pictures(places: list[Path]) -> dict[str, Picture]:
    """The pictures of all places by path within the place, and by file name if only one picture has it."""
    by_path = {name: Picture(place, name) for place in places for name in names(place) if is_picture(name)}
    by_name = group((picture, PurePosixPath(name).name) for name, picture in by_path.items())
    return {name: pictures[0] for name, pictures in by_name.items() if len(pictures) == 1} | by_path


def _find_places(root: Path) -> list[Path]:
    """The folder itself if it has folders of pictures, otherwise every archive in it."""
    in_folders = any(is_picture(name) and PurePosixPath(name).parent.name for name in names(root))
    archives = sorted(path for path in root.iterdir() if is_archive(path))
    return [root] if in_folders or not archives else archives


def _find_first(root: Path, options: Iterable[str]) -> Path | None:
    return next((root / name for name in options if (root / name).exists()), None)


def _name_places(spellings: Iterable[str]) -> Iterator[str]:
    """Each spelling as a folder and as an archive."""
    for name in spellings:
        yield from (name, *(f"{name}{ending}" for ending in ARCHIVES))
