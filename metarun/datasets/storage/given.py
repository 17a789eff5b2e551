"""Find the pictures that a person gives to a trained model: with labels if class folders or a table have them."""

from pathlib import Path, PurePosixPath

from metarun.config.errors import ConfigError
from metarun.datasets.storage.archives import is_archive, names
from metarun.datasets.storage.layouts import find_classes
from metarun.datasets.storage.tree import Picture, is_picture


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
        loose = {} if (path / "labels.csv").exists() else {Picture(path, n): None for n in names(path) if "/" not in n}
        found = {**{picture: None for picture in loose if is_picture(picture.name)}, **labelled}
    else:
        raise ConfigError(f"there is no file or folder {path}")
    if not found:
        raise ConfigError(f"{path} has no pictures: give one, or a folder or archive of pictures or class folders")
    return dict(sorted(found.items()))
