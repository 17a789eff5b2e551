"""A split as it was found: whole, without val, or refused. It is never drawn anew where one was given."""

from dataclasses import dataclass, field
from pathlib import Path

from metarun.config.errors import ConfigError
from metarun.config.words import count
from metarun.core.types import Split
from metarun.datasets.storage.tree import SPLITS, Classes


class Unclear(ConfigError):
    """A split that is there, but not whole or not understood."""


@dataclass(frozen=True)
class Found:
    """Pictures by split and class; under None those of classes without a split. What a person should know beside it."""

    listing: dict[Split | None, Classes]
    origin: str  # where the split came from
    notes: list[str] = field(default_factory=list)


def complete(root: Path, listing: dict[Split | None, Classes], named: dict[Split, str]) -> Found:
    """Check that a given split can be used; without val its classes are drawn from those of train. Raises Unclear."""
    missing = [split for split in ("train", "test") if not listing.get(split)]
    given = ", ".join(dict.fromkeys(named[split] for split in SPLITS if split in named))
    if missing:
        raise Unclear(
            f"{root} has {given} and no {' and no '.join(missing)}: add what is missing, "
            "or put all classes together to have them split by dataset.split_seed"
        )
    notes = []
    pairs: tuple[tuple[Split, Split], ...] = (("train", "val"), ("train", "test"), ("val", "test"))
    for one, other in pairs:
        shared = [label for label in listing.get(one, {}) if label in listing.get(other, {})]
        if shared:
            which = count(len(shared), "class")
            notes.append(f"{which} in both {one} and {other}, for example {shared[0]}: the test is not of new classes")
    without = "" if listing.get("val") else "; val: drawn from train's classes by dataset.split_seed"
    return Found(listing, f"{given}{without}", notes)
