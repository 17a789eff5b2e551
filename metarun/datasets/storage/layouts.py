"""Find pictures and their classes in the forms that users have: class folders, tables, or lists of classes.

The form is recognised by what is there:

- tables `train.csv`, `val.csv` and `test.csv` (Ravi & Larochelle; LibFewShot), or one `labels.csv`, which may have a
  column `split`: file names and labels of pictures anywhere in the folder
- lists `train.json`, `val.json` and `test.json` of class names and their folders (easyfsl)
- class folders `<class>/<picture>`, in folders or archives named train, val and test, or with such folders in each
  class; or all together, with or without a split in a file beside them (`beside.py`)

A split that is plainly given is kept. One that is not understood is refused, never drawn anew.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from metarun.config.errors import ConfigError
from metarun.config.words import count
from metarun.core.types import Split
from metarun.datasets.storage.beside import find_beside
from metarun.datasets.storage.listed import find_labels, find_lists, find_tables
from metarun.datasets.storage.splits import Found, Unclear, complete
from metarun.datasets.storage.tree import (
    SPLITS,
    Classes,
    Listing,
    Parts,
    Picture,
    Tree,
    find_empty,
    find_split,
    group,
    merge,
)

HOLDERS = (
    "images",
    "image",
    "imgs",
    "img",
    "pictures",
    "photos",
    "jpegimages",
)  # a class's pictures, within its folder
MASKS = ("masks", "mask", "annotations", "annotation", "segmentation", "segmentations", "groundtruth", "ground_truth")


def find(root: Path) -> Found[Picture] | None:
    """The pictures of a folder or archive; None if there are none. Raises ConfigError, Unclear for half a split."""
    tree = Tree.read(root)
    if not tree.pictures:
        return None
    found = next((result for form in (find_tables, find_lists, find_labels) if (result := form(root, tree))), None)
    if found is None:
        folders = _find_folders(root, tree)
        found = find_beside(root, tree, folders.listing[None]) if None in folders.listing else None
        if found is None:
            return Found(folders.listing, folders.origin, [*folders.notes, *_list_unread(root, tree, folders)])
    listed = {picture for part in found.listing.values() for pictures in part.values() for picture in pictures}
    left = len(tree.pictures) - len(listed)
    unlisted = [f"{count(left, 'picture')} not listed, not read"] if left else []
    return Found(found.listing, found.origin, [*found.notes, *unlisted, *_list_unread(root, tree, found)])


def _list_unread(root: Path, tree: Tree, found: Found[Picture]) -> Iterator[str]:
    """A line each about files that are not read, and class folders without pictures."""
    yield from tree.list_unread()
    classes = (entry for part in found.listing.values() for entry in part.items())
    labels = {picture: name for name, pictures in classes for picture in pictures}
    if empty := find_empty(root, labels):
        yield f"{count(len(empty), 'class folder')} without a picture, for example {empty[0]}"


def find_splits(root: Path) -> Listing | None:
    """The pictures of the three splits; None if not all are there. Raises ConfigError."""
    try:
        found = find(root)
    except Unclear:
        return None
    if found is None or not all(found.listing.get(split) for split in SPLITS):
        return None
    return {split: found.listing[split] for split in SPLITS}


def find_classes(root: Path) -> Classes | None:
    """The pictures by class, whatever splits there are; None if there are no pictures. Raises ConfigError."""
    try:
        found = find(root)
    except Unclear:
        pictures = _strip_common(Tree.read(root).pictures)
        with suppress(Unclear):
            pictures = _lift_splits(root, pictures)
        found = name_classes(pictures)
    return merge(found.listing.values()) if found else None


def _find_folders(root: Path, tree: Tree) -> Found[Picture]:
    """Class folders, in folders of splits or all together."""
    pictures = _lift_splits(root, _strip_common(tree.pictures))
    firsts = list(dict.fromkeys(parts[0] for parts in pictures.values() if len(parts) > 1))
    named: dict[Split, str] = {}
    for first in firsts:
        if (split := find_split(first)) is not None:
            if split in named:
                raise Unclear(f"{root} has {named[split]} and {first}: one of them must go")
            named[split] = first
    if not named:
        found = name_classes(pictures)
        if found.listing and all(find_split(label) for label in found.listing[None]):
            raise Unclear(
                f"{root} has {', '.join(found.listing[None])} with pictures, and no class folders in them: "
                "put the pictures of each class in a folder, train/<class>/<picture>"
            )
        return found
    others = [
        first
        for first in dict.fromkeys(parts[0] for parts in pictures.values() if parts)
        if first not in named.values()
    ]
    if others and len(named) < len(SPLITS):
        raise Unclear(
            f"{root} has {', '.join(named.values())} and, beside them, {', '.join(others[:3])}: "
            f"not clear which classes are {' and '.join(split for split in SPLITS if split not in named)}; "
            "name the folders train, val and test"
        )
    notes = [f"folders beside the splits are not read: {', '.join(others[:5])}"] if others else []
    listing: dict[Split | None, Classes] = {}
    for split, first in named.items():
        here = {picture: parts[1:] for picture, parts in pictures.items() if parts and parts[0] == first}
        found = name_classes(here)
        listing[split] = found.listing[None]
        notes += [f"{split}: {note}" for note in found.notes]
    _check_empty(root, named)
    whole = complete(root, listing, named)
    return Found(whole.listing, whole.origin, [*notes, *whole.notes])


def _check_empty(root: Path, named: dict[Split, str]) -> None:
    """Raise Unclear if a folder of a split has no pictures in class folders."""
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        split = find_split(path.name) if path.is_dir() else None
        if split is not None and split not in named:
            raise Unclear(f"{split} has no classes: {path} has no pictures in class folders")


def _strip_common(pictures: dict[Picture, Parts]) -> dict[Picture, Parts]:
    """Drop the folders that lead to everything, except names of splits and the last one."""
    while True:
        firsts = {parts[:1] for parts in pictures.values() if parts}
        shortest = min((len(parts) for parts in pictures.values() if parts), default=0)
        if len(firsts) != 1 or shortest < 2 or find_split(next(iter(firsts))[0]):
            return pictures
        pictures = {picture: parts[1:] for picture, parts in pictures.items()}


def _lift_splits(root: Path, pictures: dict[Picture, Parts]) -> dict[Picture, Parts]:
    """Put the split first where each class has folders of splits, <class>/train/<picture>.

    Raises Unclear if only some classes have. A folder beside others, as vehicles/train beside vehicles/bus, is a class.
    """
    folders = {parts for parts in pictures.values() if parts}
    places = {folder: place for folder in folders if (place := _find_split_place(folder, folders))}
    without = [folder for folder in folders if folder not in places]
    if not places or any(find_split(folder[0]) for folder in folders):
        return pictures
    if without:
        raise Unclear(
            f"{root} has {'/'.join(min(places))} and, in no such folder of a split, {'/'.join(min(without))}: "
            "give each class folders train, val and test, or put these above the classes"
        )
    lifted = {folder: (folder[at], *folder[:at], *folder[at + 1 :]) for folder, at in places.items()}
    return {picture: lifted.get(parts, parts) for picture, parts in pictures.items()}


def _find_split_place(folder: Parts, folders: set[Parts]) -> int | None:
    """The place of a split's name in the path, after the first, that only names of splits are beside."""
    for at in range(1, len(folder)):
        if find_split(folder[at]):
            beside = {other[at] for other in folders if len(other) > at and other[:at] == folder[:at]}
            return at if all(map(find_split, beside)) else None
    return None


def name_classes(pictures: dict[Picture, Parts]) -> Found[Picture]:
    """The class of a picture is its folder: by its name or, where names repeat, by its path.

    In <class>/images the folder above counts; masks beside a class's pictures are left out. Raises ConfigError if
    pictures lie both in a folder and in one below it.
    """
    folders = set(pictures.values())
    masks = {folder for folder in folders if _is_mask(folder, folders)}
    kept = {picture: parts for picture, parts in pictures.items() if parts and parts not in masks}
    paths = {folder: _strip_holder(folder) for folder in folders - masks if folder}
    holders = {path: folder for folder, path in paths.items()}
    for folder, path in paths.items():
        above = next((path[:end] for end in range(len(path) - 1, 0, -1) if path[:end] in holders), None)
        if above:
            raise ConfigError(
                f"pictures are in {'/'.join(holders[above])} and in {'/'.join(folder)}: "
                "it is not clear which of them is the class"
            )
    last = Counter(path[-1] for path in set(paths.values()))
    repeated = any(number > 1 for number in last.values())
    classes = group((picture, _join(paths[parts], repeated)) for picture, parts in kept.items())
    notes = []
    if loose := sum(not parts for parts in pictures.values()):
        notes.append(f"{count(loose, 'picture')} in no class folder, not read")
    if masks:
        left = sum(parts in masks for parts in pictures.values())
        name = next(part for part in min(masks) if part.lower() in MASKS)
        notes.append(f"{count(left, 'picture')} in {name} beside their classes' pictures, not read")
    return Found({None: classes}, "drawn by dataset.split_seed", notes)


def _is_mask(folder: Parts, folders: set[Parts]) -> bool:
    """Whether the folder, or one that it is in, is of masks: beside it is one of pictures, or pictures themselves."""
    return any(
        name.lower() in MASKS
        and any(o[:at] == folder[:at] and (o[at].lower() in HOLDERS if len(o) > at else at > 0) for o in folders)
        for at, name in enumerate(folder)
    )


def _strip_holder(folder: Parts) -> Parts:
    return folder[:-1] if len(folder) > 1 and folder[-1].lower() in HOLDERS else folder


def _join(path: Parts, whole: bool) -> str:
    return "/".join(path) if whole else path[-1]
