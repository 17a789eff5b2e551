"""Find what a person gives to a trained model: pictures, or the rows of a table; with labels if they have some."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from metarun.config.errors import ConfigError
from metarun.config.words import count, make_inert
from metarun.datasets.storage.archives import is_archive
from metarun.datasets.storage.layouts import find_classes
from metarun.datasets.storage.listed import LABEL
from metarun.datasets.storage.tables import Column, Row, Sheet, normalise
from metarun.datasets.storage.tree import Picture, Tree, find_empty

Item = TypeVar("Item")
LARGEST = 3.4028234663852886e38  # in float32; nan is not within it
VALUE = Column("value", ("value", "property", "active", "activity", "label", "y"))
TEXT = Column("text", ("text", "smiles", "sentence", "utterance", "string"))


class GivenPictures(NamedTuple):
    """Pictures and their labels, sorted; None for one that has none."""

    labels: dict[Picture, str | None]
    empty: Sequence[str] = ()  # class folders without a picture
    notes: Sequence[str] = ()  # what was not read


def find_given(path: Path) -> GivenPictures:
    """The pictures of a single file, or of a folder or archive in which the label of a picture is the folder that holds
    it, or its entry in `labels.csv`.

    Raises ConfigError if there are no pictures.
    """
    if path.is_file() and not is_archive(path):
        place = path.resolve() if path.is_symlink() else path
        return GivenPictures({Picture(place.parent, place.name): None})
    if not path.exists():
        raise ConfigError(f"there is no file or folder {path}")
    tree = Tree.read(path)
    labelled = {picture: name for name, pictures in (find_classes(path) or {}).items() for picture in pictures}
    loose = [picture for picture in tree.pictures if picture.place == path and "/" not in picture.name]
    found = {**dict.fromkeys(loose), **labelled}
    if not found:
        raise ConfigError(f"{path} has no pictures: give one, or a folder or archive of pictures or class folders")
    left = [str(picture) for picture in tree.pictures if picture not in found]
    notes = [f"{count(len(left), 'picture')} without a label, not read, for example {left[0]}"] if left else []
    return GivenPictures(dict(sorted(found.items())), find_empty(path, labelled), [*notes, *tree.list_unread()])


def read_texts(
    path: Path, measured: bool = False, check: Callable[[str], None] = lambda text: None
) -> list[tuple[str, Any]]:
    """Text, or SMILES, and label of each row of a table; None if it has no column of labels. Raises ConfigError.

    measured: a label is a number, given as a list of one. check: raises ConfigError for a text that cannot be used.
    """
    sheet, label = Sheet.open(path), VALUE if measured else LABEL
    found: list[tuple[str, Any]] = []
    for line, (text, *cells) in sheet.read(TEXT, *([label] if sheet.has(label) else [])):
        try:
            check(text)
        except ConfigError as error:
            raise ConfigError(f"{sheet.name}: line {line}: {error}") from error
        row = Row(line, tuple(cells))
        found.append((text, to_numbers(sheet, row, [label]) if measured and cells else next(iter(cells), None)))
    return _check_rows(sheet, found)


def read_points(path: Path) -> list[tuple[list[float], list[float] | None]]:
    """The columns x (or x1, x2, ...) and y (or y1, y2, ...) of each row of a table; None if it has no y.

    Raises ConfigError.
    """
    sheet = Sheet.open(path)
    xs, ys = find_points(sheet)
    found = _check_rows(sheet, [to_numbers(sheet, row, (*xs, *ys)) for row in sheet.read(*xs, *ys)])
    return [(values[: len(xs)], values[len(xs) :] or None) for values in found]


def _check_rows(sheet: Sheet, rows: list[Item]) -> list[Item]:
    if not rows:
        raise ConfigError(f"{sheet.name} has a header and no rows")
    return rows


def find_points(sheet: Sheet) -> tuple[list[Column], list[Column]]:
    """The columns x (or x1, x2, ...) and y (or y1, y2, ...) of a table, by their numbers and not by their order in the
    file, so that tables of one task agree; x in any case, y only if it is there.
    """
    found = {axis: [name for name in sheet.header if re.fullmatch(rf"{axis}\d*", normalise(name))] for axis in "xy"}
    names = {axis: sorted(of_axis, key=lambda name: int(normalise(name)[1:] or 0)) for axis, of_axis in found.items()}
    xs, ys = ([Column(name, (normalise(name),)) for name in each] for each in (names["x"] or ["x"], names["y"]))
    return xs, ys


def to_numbers(sheet: Sheet, row: Row, columns: Sequence[Column]) -> list[float]:
    """The finite numbers in the cells of these columns. Raises ConfigError."""
    numbers = []
    for column, cell in zip(columns, row.cells):
        try:
            number = float(cell)
        except ValueError as error:
            comma = ": write decimals with a point" if re.fullmatch(r"-?\d+,\d+", cell) else ""
            raise ConfigError(
                f"{sheet.name}: line {row.line}: {column.name} is {make_inert(cell)!r}, which is no number{comma}"
            ) from error
        if not abs(number) <= LARGEST:
            raise ConfigError(f"{sheet.name}: line {row.line}: {column.name} is {cell}, which is no finite number")
        numbers.append(number)
    return numbers
