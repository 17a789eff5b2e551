"""Pictures that a table or a list names: file names with labels, or classes with their folders."""

import json
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

from metarun.config.errors import ConfigError
from metarun.config.words import count
from metarun.core.types import Split
from metarun.datasets.storage.splits import Found, Unclear, complete
from metarun.datasets.storage.tables import TABLES, Column, Sheet
from metarun.datasets.storage.tree import Classes, Parts, Picture, Tree, find_split

FILE = Column("filename", ("filename", "file", "image", "path", "filepath", "file_name", "image_name"))
LABEL = Column("label", ("label", "class", "class_name", "category", "intent", "active"))
SPLIT = Column("split", ("split", "set", "subset", "partition"))


def read_rows(table: Path) -> list[tuple[str, str]]:
    """File name and label of each row of a table. Raises ConfigError."""
    return [(file, label) for _, (file, label) in Sheet.open(table).read(FILE, LABEL)]


def read_splits(sheet: Sheet) -> dict[int, Split]:
    """Line -> its split; empty if the table has no column of splits. Raises ConfigError, Unclear for another word."""
    found = {}
    for line, (word,) in sheet.read(SPLIT) if sheet.has(SPLIT) else ():
        split = find_split(word)
        if split is None:
            raise Unclear(f"{sheet.name}: line {line} has the split {word!r}: it must be train, val or test")
        found[line] = split
    return found


def find_by_split(root: Path, endings: Iterable[str]) -> dict[Split, Path]:
    """Split -> the file of that name in a folder. Raises Unclear if two have the same meaning."""
    found: dict[Split, Path] = {}
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        split = find_split(path.stem) if path.suffix.lower() in endings and path.is_file() else None
        if split in found:
            raise Unclear(f"{root} has {found[split].name} and {path.name}: one of them must go")
        if split is not None:
            found[split] = path
    return found


def find_tables(root: Path, tree: Tree) -> Found[Picture] | None:
    tables = find_by_split(root, TABLES)
    if not tables:
        return None
    index = Index(root, tree)
    rows: list[tuple[str, Split | None, str, Picture]] = []
    for split, table in tables.items():
        sheet = Sheet.open(table)
        listed = [(file, label) for _, (file, label) in sheet.read(FILE, LABEL)]
        rows += [(table.name, split, label, index.get(file, table, listed)) for file, label in listed]
    return complete(root, group_rows(rows), {split: table.name for split, table in tables.items()})


def find_labels(root: Path, tree: Tree) -> Found[Picture] | None:
    """One table, with a column of splits or without."""
    tables = [path for path in (root / f"labels{ending}" for ending in TABLES) if path.is_file()]
    if not tables:
        return None
    table, index = tables[0], Index(root, tree)
    sheet, rows = Sheet.open(table), []
    read = list(sheet.read(FILE, LABEL))
    listed = [(row.cells[0], row.cells[1]) for row in read]
    splits = read_splits(sheet)
    for line, (file, label) in read:
        split = splits.get(line)
        rows.append((table.name, split, label, index.get(file, table, listed)))
    listing = group_rows(rows)
    if not splits:
        return Found(listing, f"drawn by dataset.split_seed, {table.name} has no column split")
    return complete(root, listing, {split: f"{table.name}, column {sheet.title(SPLIT)}" for split in listing if split})


def find_lists(root: Path, tree: Tree) -> Found[Picture] | None:
    """Lists of class names and of their folders, as easyfsl reads them."""
    lists = find_by_split(root, (".json",))
    parsed = {split: _read_list(path) for split, path in lists.items()}
    given = {split: classes for split, classes in parsed.items() if classes is not None}
    if not given:
        return None
    folders: dict[Parts, list[Picture]] = defaultdict(list)
    for picture, parts in tree.pictures.items():
        for start in range(len(parts)):
            folders[parts[start:]].append(picture)
    listing: dict[Split | None, Classes] = {}
    for split, classes in given.items():
        for name, folder in classes:
            parts = PurePosixPath(folder.replace("\\", "/")).parts
            ends = (parts[start:] for start in range(len(parts)))
            pictures = next((folders[end] for end in ends if end in folders), None)
            if pictures is None:
                raise ConfigError(
                    f"{lists[split]}: class {name} has the folder {folder}, which has no pictures in {root}"
                )
            listing.setdefault(split, {})[name] = pictures
    return complete(root, listing, {split: lists[split].name for split in given})


def _read_list(path: Path) -> list[tuple[str, str]] | None:
    """Name and folder of each class; None if the file is something else."""
    try:
        values: Any = json.loads(path.read_text(encoding="utf-8-sig"))
        return list(zip(map(str, values["class_names"]), map(str, values["class_roots"]), strict=True))
    except (ValueError, KeyError, TypeError, OSError):
        return None


class Index:
    """The pictures of a tree by the names that tables have for them."""

    def __init__(self, root: Path, tree: Tree) -> None:
        self.root = root
        self.by_end: dict[Parts, list[Picture]] = defaultdict(list)
        self.whole: dict[Parts, Picture] = {}
        for picture in tree.pictures:
            parts = PurePosixPath(picture.name).parts
            self.whole[parts] = picture
            for start in range(len(parts)):
                self.by_end[parts[start:]].append(picture)

    def find(self, name: str) -> Picture | None:
        """The picture that a name means: a path in its place, the end of one, or a path from a folder above."""
        parts = tuple(part for part in PurePosixPath(name.replace("\\", "/")).parts if part not in (".", "/"))
        if parts in self.whole:
            return self.whole[parts]
        ends = self.by_end.get(parts, [])
        if len(ends) == 1:
            return ends[0]
        above = (self.whole[parts[start:]] for start in range(1, len(parts)) if parts[start:] in self.whole)
        return None if ends else next(above, None)

    def get(self, name: str, table: Path, listed: list[tuple[str, str]]) -> Picture:
        """The picture of a row. Raises ConfigError, which counts all that are missing, if there is none."""
        if (picture := self.find(name)) is not None:
            return picture
        missing = [other for other, _ in listed if self.find(other) is None]
        raise ConfigError(
            f"{table} lists {count(len(missing), 'picture')} not found in {self.root}, for example {missing[0]}: "
            "put them there, in a folder, zip or tar"
        )


def group_rows(rows: Iterable[tuple[str, Split | None, str, Picture]]) -> dict[Split | None, Classes]:
    """The classes of each split, each picture once. Raises ConfigError if one is in two splits or has two labels."""
    seen: dict[Picture, tuple[str, Split | None, str]] = {}
    twice: dict[str, list[Picture]] = {}
    listing: dict[Split | None, Classes] = {}
    for table, split, label, picture in rows:
        if picture in seen:
            before = seen[picture]
            if before[1] != split:
                twice.setdefault(f"in {before[0]} and {table}" if before[0] != table else "in two splits", []).append(
                    picture
                )
            elif before[2] != label:
                twice.setdefault(f"in {table} under two labels", []).append(picture)
            continue
        seen[picture] = table, split, label
        listing.setdefault(split, {}).setdefault(label, []).append(picture)
    for where, pictures in twice.items():
        verb = "is" if len(pictures) == 1 else "are"
        raise ConfigError(f"{count(len(pictures), 'picture')} {verb} listed {where}, for example {pictures[0].name}")
    return listing
