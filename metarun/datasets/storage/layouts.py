"""Find pictures and their classes in the forms that users have: class folders, tables, or lists of classes.

The form is recognised by what is there:

- tables `train.csv`, `val.csv` and `test.csv` (Ravi & Larochelle; LibFewShot), or one `labels.csv`, which may have a
  column `split`: file names and labels of pictures anywhere in the folder
- lists `train.json`, `val.json` and `test.json` of class names and their folders (easyfsl)
- class folders `<class>/<picture>`, in folders or archives named train, val and test, or all together

A split that is plainly given is kept. One that is not understood is refused, never drawn anew.
"""

from collections import Counter
from pathlib import Path

from metarun.config.errors import ConfigError
from metarun.config.words import count
from metarun.core.types import Split
from metarun.datasets.storage.listed import find_labels, find_lists, find_tables
from metarun.datasets.storage.splits import Found, Unclear, complete
from metarun.datasets.storage.tree import SPLITS, Classes, Listing, Parts, Picture, Tree, find_split, group, merge

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
    found = found or _find_folders(root, tree)
    return Found(found.listing, found.origin, [*found.notes, *tree.list_unread()])


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
        found = name_classes(_strip_common(Tree.read(root).pictures))
    return merge(found.listing.values()) if found else None


def _find_folders(root: Path, tree: Tree) -> Found[Picture]:
    """Class folders, in folders of splits or all together."""
    pictures = _strip_common(tree.pictures)
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


def name_classes(pictures: dict[Picture, Parts]) -> Found[Picture]:
    """The class of a picture is its folder: by its name or, where names repeat, by its path.

    In <class>/images the folder above counts; masks beside a class's pictures are left out. Raises ConfigError if
    pictures lie both in a folder and in one below it.
    """
    folders = set(pictures.values())
    masks = {folder for folder in folders if _is_mask(folder, folders)}
    kept = {picture: parts for picture, parts in pictures.items() if parts and parts not in masks}
    paths = {folder: _strip_holder(folder) for folder in folders - masks if folder}
    for folder in paths:
        above = next((folder[:end] for end in range(len(folder) - 1, 0, -1) if folder[:end] in paths), None)
        if above and paths[folder] != paths[above]:
            raise ConfigError(
                f"pictures are in {'/'.join(above)} and in {'/'.join(folder)}: "
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
        notes.append(f"{count(left, 'picture')} in {masks.pop()[-1]} beside their classes' pictures, not read")
    return Found({None: classes}, "drawn by dataset.split_seed", notes)


def _is_mask(folder: Parts, folders: set[Parts]) -> bool:
    """Whether this is a folder of masks: there are pictures in the folder above it, or in another one there."""
    beside = (other for other in folders if other != folder and other[: len(folder) - 1] == folder[:-1])
    holders = (other for other in beside if len(other) < len(folder) or other[-1].lower() in HOLDERS)
    return len(folder) > 1 and folder[-1].lower() in MASKS and next(holders, None) is not None


def _strip_holder(folder: Parts) -> Parts:
    return folder[:-1] if len(folder) > 1 and folder[-1].lower() in HOLDERS else folder


def _join(path: Parts, whole: bool) -> str:
    return "/".join(path) if whole else path[-1]
