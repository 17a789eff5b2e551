"""Every picture below a folder or in an archive, with the folders that lead to it; what endings and names mean."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar, get_args

from metarun.core.types import Split
from metarun.datasets.storage.archives import ARCHIVES, folders, is_archive, names
from metarun.datasets.storage.tables import TABLES

SPLITS: tuple[Split, ...] = get_args(Split)
PICTURES = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".j2k", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".avif",
    ".ppm", ".pgm", ".pbm", ".pnm", ".tga",
)  # fmt: skip
BESIDE = (".txt", ".md", ".csv", ".tsv", ".json", ".xml", ".html", ".yaml", ".yml", ".db", ".ini", ".pdf", ".py")
SPELLINGS: dict[Split, tuple[str, ...]] = {
    "train": ("train", "training", "meta-train", "meta_train", "metatrain"),
    "val": ("val", "valid", "validation", "dev", "meta-val", "meta_val", "metaval", "meta-valid"),
    "test": ("test", "testing", "meta-test", "meta_test", "metatest"),
}


class Picture(NamedTuple):
    """Where a picture is: a file `name` in a folder or archive, or a row of the pickle of that name."""

    place: Path
    name: str
    row: int | None = None

    def __str__(self) -> str:
        archive = f"{self.place.name}/" if self.place.name.lower().endswith(ARCHIVES) else ""
        return archive + self.name + ("" if self.row is None else f", row {self.row}")


Classes = dict[str, list[Picture]]  # class -> its pictures
Listing = dict[Split, Classes]
Member = TypeVar("Member")
Parts = tuple[str, ...]


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
    return PurePosixPath(name).suffix.lower() in PICTURES and not _is_hidden(name)


@dataclass(frozen=True)
class Tree:
    """Every picture below a root, with the folders that lead to it; an archive counts as a folder of its name."""

    pictures: dict[Picture, Parts]
    unread: Counter[str]  # files that are not read by their kind, mostly the ending; and archives

    @classmethod
    def read(cls, root: Path) -> "Tree":
        """Raises ConfigError if something cannot be read."""
        pictures: dict[Picture, Parts] = {}
        unread: Counter[str] = Counter()
        for place, above in _find_places(root, unread):
            for name in names(place):
                path = PurePosixPath(name)
                if is_picture(name):
                    folders = path.parts[:-1]
                    twice = above and folders[:1] == above  # birds.zip often holds one folder, birds
                    pictures[Picture(place, name)] = folders if twice else (*above, *folders)
                elif kind := _name_unread(path):
                    unread[kind] += 1
        return cls(pictures, unread)

    def list_unread(self) -> Iterator[str]:
        """A line about the files that were not read, if there are any."""
        if self.unread:
            counts = ", ".join(f"{number} {ending}" for ending, number in self.unread.most_common())
            yield f"files that are not read: {counts}"


def find_empty(place: Path, labels: Mapping[Picture, str | None]) -> list[str]:
    """The folders beside those of the classes that hold neither a picture nor what is usual beside pictures."""
    above: set[Parts] = set()
    for picture, label in labels.items():
        parts = PurePosixPath(picture.name).parts[:-1]
        above |= {parts[:at] for at, part in enumerate(parts) if label and part == PurePosixPath(label).name}
    kept = (name for name in names(place) if is_picture(name) or _is_usual(PurePosixPath(name)))
    held = {str(folder) for name in kept for folder in PurePosixPath(name).parents}
    empty = (folder for folder in folders(place) if folder not in held and not _is_hidden(folder))
    return [folder for folder in empty if PurePosixPath(folder).parts[:-1] in above]


def _is_usual(path: PurePosixPath) -> bool:
    return not _is_hidden(str(path)) and not _name_unread(path)


def _name_unread(path: PurePosixPath) -> str | None:
    """What a file that is no picture is counted as; None for those that are usual beside pictures."""
    ending = path.suffix.lower()
    if _is_hidden(str(path)):
        return f"hidden {ending}" if ending in PICTURES and "__MACOSX" not in path.parts else None
    if not ending:
        return None if path.name.isupper() else "without an ending"  # README, LICENSE
    return None if ending in (*BESIDE, *ARCHIVES, *TABLES) else ending


def _find_places(root: Path, unread: Counter[str]) -> Iterator[tuple[Path, Parts]]:
    """Where pictures are, and what their paths begin with: the root, and archives in it.

    Archives of splits are always read; others only if no picture is in a folder.
    """
    if not root.is_dir():
        yield root, ()
        return
    yield root, ()
    in_folders = any(is_picture(name) and PurePosixPath(name).parent.name for name in names(root))
    archives = {path: _strip_endings(path.name) for path in sorted(root.iterdir()) if is_archive(path)}
    for path, stem in archives.items():
        if find_split(stem) is not None or not in_folders:
            yield path, (stem,) if len(archives) > 1 or find_split(stem) else ()
        else:
            unread[path.name] += 1


def _strip_endings(name: str) -> str:
    ending = max((end for end in ARCHIVES if name.lower().endswith(end)), key=len, default="")
    return name[: len(name) - len(ending)]


def find_split(name: str) -> Split | None:
    """The split that a name means, in the usual spellings; None for any other name."""
    return next((split for split, spellings in SPELLINGS.items() if name.lower() in spellings), None)


def _is_hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts)
