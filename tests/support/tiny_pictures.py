"""Small picture sets in every form; the one colour of a picture tells its split, its class and its place there."""

import csv
import io
import pickle
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image

from metarun.config.registry import build
from metarun.datasets.images import Images
from metarun.datasets.storage.known_sets import read_class_lists
from metarun.datasets.storage.tree import SPLITS
from tests.support.shipped import read_settings

CLASSES = {"train": 3, "val": 2, "test": 2}
PER_CLASS = 4
SIDE = 6


class Piece(NamedTuple):
    split: str
    label: str
    name: str
    colour: tuple[int, int, int]


def pieces() -> list[Piece]:
    """As miniImageNet names them: the number after the class is which of ImageNet's pictures of it this is."""
    found = []
    for s, (split, classes) in enumerate(CLASSES.items()):
        for c in range(classes):
            label = f"n0{s}00000{c}"
            found += [
                Piece(split, label, f"{label}{i + 1:08d}.png", (40 * s, 40 * c, 40 * i)) for i in range(PER_CLASS)
            ]
    return found


def array(colour: tuple[int, int, int], side: int = SIDE) -> np.ndarray:
    return np.full((side, side, 3), colour, dtype=np.uint8)


def encoded(colour: tuple[int, int, int], format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(array(colour)).save(out, format)
    return out.getvalue()


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def write_folders(root: Path, split: bool = True) -> None:
    for piece in pieces():
        base = root / piece.split if split else root
        write(base / piece.label / piece.name, encoded(piece.colour))


def write_tables(root: Path) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        rows = [(piece.name, piece.label) for piece in pieces() if piece.split == split]
        with (root / f"{split}.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("filename", "label"), *rows])


def write_ravi(root: Path) -> None:
    write_tables(root)
    for piece in pieces():
        write(root / "images" / piece.name, encoded(piece.colour))


def write_ravi_tars(root: Path) -> None:
    write_tables(root)
    for split in SPLITS:
        with tarfile.open(root / f"images-{split}.tar.xz", "w:xz") as archive:
            for piece in pieces():
                if piece.split == split:
                    add(archive, f"images/{piece.name}", encoded(piece.colour))


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    archive.addfile(info, io.BytesIO(content))


def write_zips(root: Path) -> None:
    root.mkdir(parents=True)
    for split in SPLITS:
        with zipfile.ZipFile(root / f"{split}.zip", "w") as archive:
            for piece in pieces():
                if piece.split == split:
                    archive.writestr(f"{piece.label}/{piece.name}", encoded(piece.colour))


def write_cached_pickles(root: Path) -> None:
    for split in SPLITS:
        chosen = [piece for piece in pieces() if piece.split == split]
        rows: dict[str, list[int]] = {}
        for row, piece in enumerate(chosen):
            rows.setdefault(piece.label, []).append(row)
        data = {"image_data": np.stack([array(piece.colour) for piece in chosen]), "class_dict": rows}
        write(root / f"mini-imagenet-cache-{split}.pkl", pickle.dumps(data))


def write_imagenet(root: Path) -> None:
    """Ravi & Larochelle's tables beside ImageNet's own names, whose numbers have gaps and no zeros before them."""
    write_tables(root)
    for piece in pieces():
        i = int(piece.name[9:17]) - 1
        number = (7, 12, 101, 1003)[i]
        write(root / "train" / piece.label / f"{piece.label}_{number}.JPEG", encoded(piece.colour))


def write_cifar(root: Path, per_class: int, unpacked: bool = True) -> list[str]:
    """CIFAR-100 with so many pictures a class, each of the colour of its class's number; the classes' names."""
    names = sorted(name for names in read_class_lists("cifar_fs").values() for name in names)
    labels = [*range(100)] * (per_class // 2)
    data = {"data": np.array(labels, dtype=np.uint8)[:, None].repeat(3 * 32 * 32, 1), "fine_labels": labels}
    files = {"meta": {"fine_label_names": names}, "train": data, "test": data}
    if unpacked:
        for file, content in files.items():
            write(root / "cifar-100-python" / file, pickle.dumps(content, protocol=2))
        return names
    root.mkdir()
    with tarfile.open(root / "cifar-100-python.tar.gz", "w:gz") as archive:
        for file, content in files.items():
            add(archive, f"cifar-100-python/{file}", pickle.dumps(content, protocol=2))
    return names


def write_listed(root: Path, name: str, per_class: int) -> None:
    """Class folders for the published lists of a set."""
    for label in (label for labels in read_class_lists(name).values() for label in labels):
        for i in range(per_class):
            write(root / label / f"{label}_{i}.png", encoded((i, i, i)))


FORMS = {
    "class folders": write_folders,
    "zips of class folders": write_zips,
    "tables and a folder": write_ravi,
    "tables and tars": write_ravi_tars,
    "learn2learn's pickles": write_cached_pickles,
    "ImageNet and tables": write_imagenet,
}


def images(file: str, path: Path | None, **changes: Any) -> Images:
    """The shipped configs/dataset/FILE.yaml on small pictures."""
    values = read_settings("folder", file) | {"image_size": SIDE, "path": path and str(path), **changes}
    data_dir = values.pop("data_dir", Path("nowhere"))
    built = build("dataset", values, data_dir=data_dir, device=torch.device("cpu"))
    assert isinstance(built, Images)
    return built


def colours(dataset: Images) -> Iterator[tuple[str, tuple[int, ...]]]:
    """The class and the colour of every packed picture, each of which must be of one colour."""
    packed = dataset.packed
    for label, picture in zip(packed.labels, packed.pictures):
        assert (picture == picture[:, :1, :1]).all()
        yield "/".join(str(part) for part in packed.classes[label]), tuple(picture[:, 0, 0].tolist())


def packings(cache: Path) -> list[Path]:
    """Everything in the cache but locks."""
    return [path for path in cache.glob("*/*") if path.suffix != ".lock"]
