"""Find what a person gives to a trained model: pictures, or the rows of a table; with labels if they have some."""

import re
from pathlib import Path, PurePosixPath

from metarun.config.errors import ConfigError
from metarun.datasets.storage.archives import is_archive, names
from metarun.datasets.storage.layouts import find_classes
from metarun.datasets.storage.listed import LABEL
from metarun.datasets.storage.tables import Column, Sheet
from metarun.datasets.storage.tree import Picture, is_picture

TEXT = Column("text", ("text", "smiles", "sentence", "utterance", "string"))


def find_given(path: Path) -> dict[Picture, str | None]:
    """Pictures and their labels, sorted: of a single file, or of a folder or archive in which the label of a picture is
    the folder that holds it, or its entry in `labels.csv`; None if it has neither.

    Raises ConfigError if there are no pictures.
    """
    if path.is_file() and not is_archive(path):
        found: dict[Picture, str | None] = {Picture(path.parent, path.name): None}
    elif path.is_file():
        pictures = (Picture(path, name) for name in names(path) if is_picture(name))
        found = {picture: PurePosixPath(picture.name).parent.name or None for picture in pictures}
    elif path.is_dir():
        labelled = {picture: name for name, pictures in (find_classes(path) or {}).items() for picture in pictures}
        loose = [Picture(path, name) for name in names(path) if "/" not in name and is_picture(name)]
        found = {**dict.fromkeys(loose), **labelled}
    else:
        raise ConfigError(f"there is no file or folder {path}")
    if not found:
        raise ConfigError(f"{path} has no pictures: give one, or a folder or archive of pictures or class folders")
    return dict(sorted(found.items()))


def read_texts(path: Path) -> list[tuple[str, str | None]]:
    """Text, or SMILES, and label of each row of a table; None if it has no column of labels. Raises ConfigError."""
    sheet = _read_sheet(path)
    if sheet.has(LABEL):
        return [(row.cells[0], row.cells[1]) for row in sheet.read(TEXT, LABEL)]
    return [(row.cells[0], None) for row in sheet.read(TEXT)]


def read_points(path: Path) -> list[tuple[list[float], list[float] | None]]:
    """The columns x (or x1, x2, ...) and y (or y1, y2, ...) of each row of a table; None if it has no y.

    Raises ConfigError.
    """
    sheet = _read_sheet(path)
    names = {axis: [name for name in sheet.header if re.fullmatch(rf"{axis}\d*", name.lower())] for axis in "xy"}
    columns = [Column(name, (name.lower(),)) for name in [*(names["x"] or ["x"]), *names["y"]]]
    points = []
    for row in sheet.read(*columns):
        try:
            values = [float(cell) for cell in row.cells]
        except ValueError as error:
            raise ConfigError(f"{path}: line {row.line} has something else than a number: {error}") from error
        number = len(columns) - len(names["y"])
        points.append((values[:number], values[number:] or None))
    return points


def _read_sheet(path: Path) -> Sheet:
    try:
        return Sheet.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise ConfigError(f"the table {path} cannot be read ({error.strerror})") from error
