"""Files beside class folders that say what the folders do not: a split, or labels."""

from pathlib import Path, PurePosixPath

from metarun.config.errors import ConfigError
from metarun.core.types import Split
from metarun.datasets.storage.listed import FILE, LABEL, SPLIT, Index, find_by_split, group_rows, read_splits
from metarun.datasets.storage.splits import Found, Unclear, complete
from metarun.datasets.storage.tables import TABLES, Sheet, decode
from metarun.datasets.storage.tree import Classes, Picture, Tree, find_split

LISTS = (".txt", ".lst")


def find_beside(root: Path, tree: Tree, classes: Classes) -> Found[Picture] | None:
    """The pictures as lists of the splits say, or a table; None if there is neither.

    classes: those of the folders. Raises ConfigError, Unclear for a split that is not understood.
    """
    return _find_text_lists(root, classes) or _find_table(root, tree, classes)


def _find_text_lists(root: Path, classes: Classes) -> Found[Picture] | None:
    """The splits of train.txt, val.txt and test.txt, with the name of a class in each line."""
    lists = find_by_split(root, LISTS)
    known = {PurePosixPath(label).name: label for label in classes} | {label: label for label in classes}
    listing: dict[Split | None, Classes] = {}
    for split, path in lists.items():
        lines = decode(path.read_bytes(), str(path)).splitlines()
        for number, name in enumerate(map(str.strip, lines), start=1):
            if name and name not in known:
                raise Unclear(
                    f"{path}: line {number} is {name!r}, which is no class folder: name one in each line, "
                    f"or write {split}.csv with the columns filename and label"
                )
            if name:
                listing.setdefault(split, {})[known[name]] = classes[known[name]]
    return complete(root, listing, {split: path.name for split, path in lists.items()}) if lists else None


def _find_table(root: Path, tree: Tree, classes: Classes) -> Found[Picture] | None:
    """The first table with the splits of pictures, whose classes are their folders; or, where all pictures are in one
    folder, with their labels.
    """
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if path.suffix.lower() in TABLES and path.is_file():
            sheet = _open_quietly(path)
            if sheet and sheet.has(FILE) and (_has_splits(sheet) or (len(classes) == 1 and sheet.has(LABEL))):
                return _read_table(root, tree, path, sheet, classes)
    return None


def _open_quietly(path: Path) -> Sheet | None:
    try:
        return Sheet.open(path)
    except ConfigError:  # a table of something else
        return None


def _has_splits(sheet: Sheet) -> bool:
    return sheet.has(SPLIT) and any(find_split(word) for _, (word,) in sheet.read(SPLIT, blank=True))


def _read_table(root: Path, tree: Tree, path: Path, sheet: Sheet, classes: Classes) -> Found[Picture]:
    index, splits = Index(root, tree), read_splits(sheet) if _has_splits(sheet) else {}
    if len(classes) == 1:
        listed = [(line, file, label) for line, (file, label) in sheet.read(FILE, LABEL)]
    else:
        listed = [(line, file, "") for line, (file,) in sheet.read(FILE)]
    named = [(file, label) for _, file, label in listed]
    pictures = {line: index.get(file, path, named) for line, file, _ in listed}
    folders = {picture: label for label, held in classes.items() for picture in held}
    listing = group_rows(
        (path.name, splits.get(line), label or folders[pictures[line]], pictures[line])
        for line, _, label in listed
        if label or pictures[line] in folders
    )
    if not splits:
        return Found(listing, f"drawn by dataset.split_seed, {path.name} has no column split")
    return complete(root, listing, {split: f"{path.name}, column {sheet.title(SPLIT)}" for split in listing if split})
