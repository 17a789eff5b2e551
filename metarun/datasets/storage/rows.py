"""Read a person's own tables, JSON lines and arrays as examples of classes or tasks.

A path is a file; or a folder that holds one, or one for each split, train.csv, val.csv and test.csv.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from metarun.config.errors import ConfigError
from metarun.config.words import make_inert
from metarun.core.types import Split
from metarun.datasets.storage.archives import fingerprint
from metarun.datasets.storage.arrays import load_features
from metarun.datasets.storage.given import LARGEST, TEXT, VALUE, find_points, to_numbers
from metarun.datasets.storage.listed import LABEL, SPLIT, find_by_split, read_splits
from metarun.datasets.storage.splits import Found, Groups, complete, plural
from metarun.datasets.storage.tables import LINES, TABLES, Column, Row, Sheet, normalise
from metarun.datasets.storage.tree import find_split

ROWS = (*TABLES, *LINES)
ARRAYS = (".npz",)
SMILES = Column("smiles", ("smiles", "canonical_smiles", "molecule", "mol"))
ASSAY = Column("assay", ("assay", "assay_id", "assay_chembl_id", "task", "task_id"))
TASK = Column("task", ("task", "task_id", "group", "series", "function"))
WORDS = {"true": 1.0, "active": 1.0, "false": 0.0, "inactive": 0.0}
MISSING = ("", "nan", "na", "n/a", "null", "none")


class Example(NamedTuple):
    """What is encoded, which is equal for equal examples; in regression its values; and its name for a person."""

    key: Any  # hashable
    values: tuple[float, ...]
    name: str


Reader = Callable[[Path], Iterator[tuple[Split | None, str, Example]]]  # of a file: split, class or task, example


def find_rows(root: Path, endings: Sequence[str], read: Reader, noun: str, wanted: str) -> Found[Example]:
    """The examples below a path. Raises ConfigError, Unclear for half a split.

    noun: what is split. wanted: what the file must be, in messages.
    """
    listing: dict[Split | None, Groups[Example]] = {}
    files = list_files(root, endings, wanted)
    named = {split: file.name for split, file in files.items() if split}
    for split, file in files.items():
        for own, group, example in read(file):
            where = split or own
            if where is not None:
                named.setdefault(where, f"{file.name}, column split")
            listing.setdefault(where, {}).setdefault(group, []).append(example)
    if not listing:
        raise ConfigError(f"{root} has no {plural(noun)}: it must be {wanted}")
    if set(listing) == {None}:
        return Found(listing, f"drawn by dataset.split_seed, {files[None].name} says none")
    return complete(root, listing, named, noun)


def list_files(root: Path, endings: Sequence[str], wanted: str) -> dict[Split | None, Path]:
    """Split -> its file; or None -> the single one. Raises ConfigError."""
    if root.is_file():
        if root.suffix.lower() not in endings:
            raise ConfigError(f"dataset.path is {root}: it must be {wanted}, a file that ends with {_either(endings)}")
        return {None: root}
    if by_split := find_by_split(root, endings):
        return dict(by_split.items())
    files = [path for path in sorted(root.iterdir()) if path.suffix.lower() in endings and path.is_file()]
    if len(files) != 1:
        found = ", ".join(path.name for path in files[:3]) or "none"
        raise ConfigError(
            f"dataset.path is the folder {root}, and it is not clear which file in it is meant (of those that end with "
            f"{_either(endings)} it has {found}): name {wanted}, or have one named train and one named test"
        )
    return {None: files[0]}


def _either(endings: Sequence[str]) -> str:
    return " or ".join(endings)


def hash_content(root: Path) -> str:
    """A hash of a file's whole content, or of a folder's names, sizes and times. Raises ConfigError."""
    if root.is_dir():
        return fingerprint(root)
    try:
        with root.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{root} cannot be read ({error.strerror})") from error


def read_text_table(path: Path) -> Iterator[tuple[Split | None, str, Example]]:
    """Rows of a text and its label."""
    sheet = Sheet.open(path)
    splits = read_splits(sheet)
    for line, (text, label) in sheet.read(TEXT, LABEL):
        yield splits.get(line), label, Example(text, (), text)


def read_point_table(path: Path) -> Iterator[tuple[Split | None, str, Example]]:
    """Rows of a task, the numbers x and the values y."""
    sheet = Sheet.open(path)
    splits, (xs, ys) = read_splits(sheet), find_points(sheet)
    columns = (*xs, *(ys or [Column("y", ("y",))]))
    for row in sheet.read(TASK, *columns):
        task, *cells = row.cells
        numbers = to_numbers(sheet, Row(row.line, tuple(cells)), columns)
        x, y = tuple(numbers[: len(xs)]), tuple(numbers[len(xs) :])
        yield splits.get(row.line), task, Example(x, y, f"line {row.line}")


class AssayTable:
    """Reads molecules and what was measured: an assay in each column, or a measurement in each row."""

    def __init__(self, continuous: bool) -> None:
        self.continuous = continuous
        self.notes: list[str] = []

    def __call__(self, path: Path) -> Iterator[tuple[Split | None, str, Example]]:
        sheet = Sheet.open(path)
        if sheet.has(ASSAY):
            splits = read_splits(sheet)
            for line, (smiles, assay, cell) in sheet.read(SMILES, ASSAY, VALUE):
                value = self._parse(cell, f"{path}: line {line}, assay {assay}")
                yield splits.get(line), assay, Example(smiles, (value,), smiles)
        else:
            yield from self._read_columns(sheet)

    def _read_columns(self, sheet: Sheet) -> Iterator[tuple[None, str, Example]]:
        if sheet.has(SPLIT):
            raise ConfigError(
                f"{sheet.name}: its column split divides molecules, and metarun splits assays, which are columns here: "
                "remove it, or give the assays of each split in a file of their own, train.csv, val.csv and test.csv"
            )
        molecules = [row.cells[0] for row in sheet.read(SMILES)]
        names = [name for name in sheet.header if name and normalise(name) not in SMILES.headers]
        words = []
        for name in names:
            cells = list(sheet.read(Column(name, (normalise(name),)), blank=True))
            if not any(_is_value(cell) for _, (cell,) in cells):
                words.append(name)
                continue
            for smiles, (line, (cell,)) in zip(molecules, cells):
                if cell.lower() not in MISSING:
                    value = self._parse(cell, f"{sheet.name}: line {line}, column {name}")
                    yield None, name, Example(smiles, (value,), smiles)
        if words:
            self.notes.append(f"columns without values are no assays: {', '.join(map(make_inert, words[:5]))}")

    def _parse(self, cell: str, place: str) -> float:
        """The value of a cell. Raises ConfigError."""
        try:
            value = WORDS[cell.lower()] if cell.lower() in WORDS and not self.continuous else float(cell)
        except ValueError as error:
            raise ConfigError(f"{place} has {make_inert(cell)!r}: it must be a number, or empty") from error
        if not abs(value) <= LARGEST:
            raise ConfigError(f"{place} has {cell}, which is no finite number")
        if not self.continuous and value not in (0.0, 1.0):
            raise ConfigError(
                f"{place} has {cell}: it must be 1 (active), 0 (inactive) or empty; "
                "leave a column that is no assay out, or set dataset.values=continuous for measured values"
            )
        return value


def _is_value(cell: str) -> bool:
    word = cell.lower()
    try:
        float(word)
    except ValueError:
        return word in WORDS
    return word not in MISSING


def read_feature_file(path: Path) -> Iterator[tuple[Split | None, str, Example]]:
    """Vectors with labels, of the arrays `embeddings` [n, ...] and `labels` [n]; `splits` and `files` [n] if given."""
    features, labels, others = load_features(path)
    if labels is None:
        raise ConfigError(f"{path} has no array labels: it has {', '.join(others)}")
    splits = [find_split(str(word)) for word in others.get("splits", others.get("split", ()))]
    if None in splits:
        raise ConfigError(f"{path}: row {splits.index(None)} of splits is none of train, val and test")
    names = others.get("files")
    for i, label in enumerate(labels.tolist()):
        key = (features.shape[1:], features[i].tobytes())
        split = splits[i] if splits else None
        yield split, str(label), Example(key, (), str(names[i]) if names is not None else f"row {i}")
