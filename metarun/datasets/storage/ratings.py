"""Read who rated what: the files of MovieLens, or tables of one's own."""

import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.words import count
from metarun.datasets.storage.archives import contents, names
from metarun.datasets.storage.tables import Column, Sheet, decode

USER = Column("user", ("user", "userid", "user_id"))
ITEM = Column("item", ("item", "itemid", "item_id", "movie", "movieid", "movie_id"))
RATING = Column("rating", ("rating", "ratings", "stars", "score"))
TIME = Column("time", ("time", "timestamp", "date"))
TITLE = ("title", "name")  # columns that tell nothing but the year, "Heat (1995)"
RATED, LISTED = ("ratings.csv", "ratings.tsv", "ratings.dat"), ("movies.csv", "items.csv", "items.tsv", "movies.dat")
HEADERS = {"ratings.dat": ["user", "item", "rating", "time"], "movies.dat": ["item", "title", "genres"]}  # of ml-1m
YEAR = re.compile(r"\((\d{4})\)\s*$")
LEAST = 10  # items that share a word, for it to be an attribute


class Ratings(NamedTuple):
    """All ratings, user by user, in the order of time."""

    users: list[str]
    items: list[str]
    user: Tensor  # [n], positions in `users`, rising
    item: Tensor  # [n], positions in `items`
    rating: Tensor  # [n]
    attributes: Tensor  # [items, A], each between about -2 and 2; 0 where nothing is known
    names: list[str]  # of the attributes


@lru_cache(maxsize=2)
def read_ratings(place: Path, fingerprint: str) -> Ratings:
    """Read a table of ratings, or a folder or archive that has one and may have one of items. `fingerprint` is that of
    the content, which is read once. Raises ConfigError.
    """
    found = {name.rpartition("/")[2]: name for name in reversed(names(place))} if not _is_table(place) else {}
    rated, listed = (next((name for name in group if name in found), None) for group in (RATED, LISTED))
    if rated is None and not _is_table(place):
        raise ConfigError(f"{place} has no {' or '.join(RATED)}: put one there, or set dataset.path to your table")
    wanted = [found[name] for name in (rated, listed) if name]
    read = dict(contents(place, wanted)) if wanted else {place.name: place.read_bytes()}
    sheets = {name.rpartition("/")[2]: _parse(content, name.rpartition("/")[2]) for name, content in read.items()}
    ratings = _read_rows(sheets[rated or place.name])
    attributes = _read_attributes(sheets[listed], ratings.items) if listed else {}
    columns = [torch.tensor(column, dtype=torch.float32) for column in attributes.values()]
    table = torch.stack(columns, 1) if columns else torch.zeros(len(ratings.items), 0)
    return ratings._replace(attributes=table, names=[*attributes])


def _is_table(place: Path) -> bool:
    return place.is_file() and place.suffix.lower() in (".csv", ".tsv", ".dat", ".txt")


def _parse(content: bytes, name: str) -> Sheet:
    """A table, or one of ml-1m's files, which have no header and :: between the cells."""
    if name not in HEADERS:
        return Sheet.parse(content, name)
    lines = decode(content, name).splitlines()
    return Sheet(name, HEADERS[name], [(i, line.split("::")) for i, line in enumerate(lines, 1) if line])


def _read_rows(sheet: Sheet) -> Ratings:
    timed = sheet.has(TIME)
    user, item, rating, time = [], [], [], []
    for line, cells in sheet.read(USER, ITEM, RATING, *([TIME] if timed else [])):
        try:
            rating.append(float(cells[2]))
            time.append(float(cells[3]) if timed else 0.0)
        except ValueError as error:
            raise ConfigError(f"{sheet.name}: line {line} has a rating or a time that is no number: {error}") from error
        user.append(cells[0])
        item.append(cells[1])
    if not np.isfinite([*rating, *time]).all():
        raise ConfigError(f"{sheet.name} has a rating or a time that is not finite")
    users, items = sorted(set(user)), sorted(set(item))
    if len(set(zip(user, item))) < len(user):
        raise ConfigError(f"{sheet.name} has more than one rating of an item by a user: leave one of them")
    place_of_user, place_of_item = ({name: i for i, name in enumerate(group)} for group in (users, items))
    by_user, by_item = (
        np.array([place_of_user[name] for name in user]),
        np.array([place_of_item[name] for name in item]),
    )
    order = np.lexsort((np.array(time), by_user))  # stable: the file's order within one time
    return Ratings(
        users,
        items,
        torch.from_numpy(by_user[order]),
        torch.from_numpy(by_item[order]),
        torch.tensor(rating, dtype=torch.float32)[order],
        torch.zeros(len(items), 0),
        [],
    )


def _read_attributes(sheet: Sheet, items: list[str]) -> dict[str, list[float]]:
    """Name -> the values of the items: numbers are scaled to standard deviation 1; words, divided by |, are 0 or 1."""
    cells = {row.cells[0]: dict(zip(sheet.header, line)) for row, (_, line) in zip(sheet.read(ITEM), sheet.lines)}
    if not cells.keys() & set(items):
        raise ConfigError(f"{sheet.name} has none of the {count(len(items), 'item')} that were rated")
    found: dict[str, list[float]] = {}
    for header in sheet.header:
        values = [cells.get(item, {}).get(header, "") for item in items]
        if header.lower() in TITLE:
            header, values = "year", [year[1] if (year := YEAR.search(value)) else "" for value in values]
        if header.lower() not in ITEM.headers:
            found |= dict(_scale(header, values) if _are_numbers(values) else _split(header, values))
    return found


def _are_numbers(values: Iterable[str]) -> bool:
    return all(re.fullmatch(r"-?\d+(\.\d+)?", value) for value in values if value)


def _scale(header: str, values: list[str]) -> Iterator[tuple[str, list[float]]]:
    numbers = np.array([float(value) if value else np.nan for value in values])
    if np.isfinite(numbers).any() and (deviation := np.nanstd(numbers)) > 0:
        yield header, np.nan_to_num((numbers - np.nanmean(numbers)) / deviation).clip(-3, 3).tolist()


def _split(header: str, values: list[str]) -> Iterator[tuple[str, list[float]]]:
    words = [set(value.split("|")) - {""} for value in values]
    for word in sorted(set().union(*words)):
        holds = [float(word in group) for group in words]
        if sum(holds) >= LEAST:
            yield f"{header}: {word}", holds
