"""Read tables as spreadsheets and scripts write them: with the usual delimiters, encodings and headers."""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from metarun.config.errors import ConfigError
from metarun.config.words import make_inert

TABLES = (".csv", ".tsv")
LINES = (".jsonl", ".ndjson")  # a JSON object in each line
DELIMITERS = ",;\t|"
SHOWN = 40  # characters of a line in a message


class Column(NamedTuple):
    """A column: its name in messages, and the headers by which it is known."""

    name: str
    headers: tuple[str, ...]


class Row(NamedTuple):
    """Where a row is in its file, and its cells, in the order of the columns that were asked for."""

    line: int
    cells: tuple[str, ...]


class Nested(str):
    """A cell of JSON that holds a list or an object: allowed only in a column that nobody reads."""


@dataclass(frozen=True)
class Sheet:
    """A table: its name in messages, its header as found, its lines, and what is wrong with the line after them."""

    name: str
    header: list[str]
    lines: list[tuple[int, list[str]]]  # number in the file, cells
    fault: str = ""

    @classmethod
    def open(cls, path: Path) -> "Sheet":
        """Read a table, or JSON lines, by the ending of the name. Raises ConfigError."""
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: what is read here is a table ({', '.join((*TABLES, *LINES))})")
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"the table {path} cannot be read ({error.strerror})") from error
        return (cls.parse_lines if path.suffix.lower() in LINES else cls.parse)(content, str(path))

    @classmethod
    def parse_lines(cls, content: bytes, name: str) -> "Sheet":
        """Read JSON lines: the keys are the columns, null is an empty cell. Raises ConfigError."""
        rows: list[tuple[int, dict[str, Any]]] = []
        for number, line in enumerate(decode(content, name).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ConfigError(f"{name}: line {number} is damaged, it is no JSON ({error})") from error
            if not isinstance(row, dict):
                raise ConfigError(f"{name}: line {number} is {_shorten(line)}: it must be an object, {{...}}")
            rows.append((number, row))
        if not rows:
            raise ConfigError(f"{name} is empty")
        header = list(dict.fromkeys(key for _, row in rows for key in row))
        return cls(name, header, [(number, [_to_cell(row.get(key)) for key in header]) for number, row in rows])

    @classmethod
    def parse(cls, content: bytes, name: str) -> "Sheet":
        """Read the content of a file; its first line is the header. A quotation mark that opens a cell must end it,
        or all lines to the next one would be taken for its text. Raises ConfigError.
        """
        text = decode(content, name)
        first = text.lstrip("\r\n").partition("\n")[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=first.count), strict=True)
        lines: list[tuple[int, list[str]]] = []
        fault, start = "", 1
        try:
            for cells in reader:
                lines.append((reader.line_num, [cell.strip() for cell in cells]))
                start = reader.line_num + 1
        except csv.Error as error:
            fault = f"line {start} has a quotation mark that is not closed, or not doubled within a cell ({error})"
        lines = [(number, cells) for number, cells in lines if any(cells)]
        if not lines:
            raise ConfigError(f"{name}: {fault}" if fault else f"{name} is empty")
        return cls(name, lines[0][1], lines[1:], fault)

    def has(self, column: Column) -> bool:
        return self._find(column) is not None

    def title(self, column: Column) -> str:
        """The header of a column that is there, as it was found."""
        place = self._find(column)
        return make_inert(self.header[place].strip("\"' ")) if place is not None else column.name

    def read(self, *columns: Column, blank: bool = False) -> Iterator[Row]:
        """The cells of these columns, line by line; empty ones only if they may be `blank`.

        Raises ConfigError if a column or a cell is missing or is a list, or a line has more cells than the header.
        """
        found = [self._find(column) for column in columns]
        if None in found:
            wanted, header = ",".join(column.name for column in columns), make_inert(",".join(self.header))
            raise ConfigError(f"{self.name}: its first line must name the columns {wanted}, and is {header!r}")
        names = [normalise(name) for name in self.header]
        for i in found:
            if i is not None and names.count(names[i]) > 1:
                raise ConfigError(f"{self.name}: two columns have the name {make_inert(names[i])!r}")
        if self.fault:
            raise ConfigError(f"{self.name}: {self.fault}")
        for line, cells in self.lines:
            if any(cells[len(self.header) :]):
                raise ConfigError(
                    f"{self.name}: line {line} has {len(cells)} cells, and the header {len(self.header)}: put a text "
                    'that contains the delimiter into quotation marks ("...")'
                )
            values = tuple(cells[i] if i is not None and i < len(cells) else "" for i in found)
            for column, value in zip(columns, values):
                if not value and not blank:
                    raise ConfigError(f"{self.name}: line {line} has no {column.name}")
                if isinstance(value, Nested):
                    raise ConfigError(
                        f"{self.name}: line {line}: {column.name} is {_shorten(value)}: it must be one text or number"
                    )
            yield Row(line, values)

    def _find(self, column: Column) -> int | None:
        """The place of the column, by the first of its headers that is there."""
        header = [normalise(name) for name in self.header]
        return next((header.index(name) for name in column.headers if name in header), None)


def normalise(header: str) -> str:
    """The form in which headers are compared."""
    return header.lower().strip("\"' ")


def _to_cell(value: Any) -> str:
    if isinstance(value, str):
        return value.strip()
    text = "" if value is None else json.dumps(value)
    return Nested(text) if isinstance(value, list | dict) else text


def _shorten(text: str) -> str:
    return make_inert(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def decode(content: bytes, name: str) -> str:
    """The text of a file in UTF-8, UTF-16 or, where it is neither, Windows-1252. Raises ConfigError."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    elif b"\0" in content[:2]:
        encodings = ["utf-16-be" if content[:1] == b"\0" else "utf-16-le"]
    else:
        encodings = ["utf-8-sig", "cp1252"]
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError:
            pass
    raise ConfigError(f"{name} is no text in UTF-8, UTF-16 or Windows-1252: save it as UTF-8")
