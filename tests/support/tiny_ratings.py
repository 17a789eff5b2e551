"""A small set of ratings in the forms that are read."""

import csv
from pathlib import Path
from typing import Any

import torch

from metarun.datasets.movielens import MovieLens

USERS, ITEMS, EACH = 30, 120, 100


def list_ratings() -> list[tuple[int, int, float, int]]:
    """User, item, stars and time: everybody rates most items, in an order of their own."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for user in range(USERS):
        order = torch.randperm(ITEMS, generator=generator)[:EACH].tolist()
        stars = (torch.rand(EACH, generator=generator) * 9).round() / 2 + 0.5
        rows += [(user, item, float(star), 1000 + time) for time, (item, star) in enumerate(zip(order, stars))]
    return sorted(rows, key=lambda row: (row[3] * 7919) % 997)  # in no order


def list_items() -> list[tuple[int, str, str]]:
    """Item, title with a year, and genres."""
    return [(item, f"Film {item} ({1900 + item})", "Drama|War" if item % 2 else "Comedy") for item in range(ITEMS)]


def write_ratings(root: Path, form: str = "csv") -> Path:
    """As ml-latest-small (csv) or ml-1m (dat)."""
    root.mkdir(parents=True, exist_ok=True)
    tables: dict[str, tuple[tuple[str, ...], list[Any]]] = {
        "ratings": (("userId", "movieId", "rating", "timestamp"), list_ratings()),
        "movies": (("movieId", "title", "genres"), list_items()),
    }
    for name, (header, rows) in tables.items():
        if form == "dat":
            text = "\n".join("::".join(map(str, row)) for row in rows)
            (root / f"{name}.dat").write_text(text, encoding="latin-1")
        else:
            with (root / f"{name}.csv").open("w", newline="") as file:
                csv.writer(file).writerows([header, *rows])
    return root


def dataset(path: Path, **changes: Any) -> MovieLens:
    settings: dict[str, Any] = {
        "users": "new", "items": "known", "split_fractions": [0.5, 0.2, 0.3], "new_items": 0.3, "held_out": 0.3,
        "hide": 0.0, "item_shrinkage": 2.0, "user_shrinkage": 3.0, "split_seed": 0,
    }  # fmt: skip
    return MovieLens(str(path), **{**settings, **changes}, data_dir=path, device=torch.device("cpu"))
