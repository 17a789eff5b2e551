"""A split as it was found, whole, without val, or refused; and what is drawn where none was given.

It is never drawn anew where one was given.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from metarun.config.errors import ConfigError
from metarun.config.words import count
from metarun.core.types import Part, Split, TaskShape
from metarun.datasets.storage.tree import SPLITS

Member = TypeVar("Member")
Groups = dict[str, list[Member]]  # class, or task -> its examples


class Unclear(ConfigError):
    """A split that is there, but not whole or not understood."""


@dataclass(frozen=True)
class Found(Generic[Member]):
    """Examples by split and class, or task; under None those without a split. What a person should know beside it."""

    listing: dict[Split | None, Groups[Member]]
    origin: str  # where the split came from
    notes: list[str] = field(default_factory=list)


def complete(
    root: Path, listing: dict[Split | None, Groups[Member]], named: dict[Split, str], noun: str = "class"
) -> Found[Member]:
    """Check that a given split can be used; without val its classes are drawn from those of train. Raises Unclear.

    noun: what is split.
    """
    if empty := [name for split, name in named.items() if not listing.get(split)]:
        raise Unclear(f"{root}: {empty[0]} lists nothing: fill it, or take it away")
    missing = [split for split in ("train", "test") if split not in named]
    given = ", ".join(dict.fromkeys(named[split] for split in SPLITS if split in named))
    if missing:
        raise Unclear(
            f"{root} has {given} and no {' and no '.join(missing)}: add what is missing, "
            f"or put all {plural(noun)} together to have them split by dataset.split_seed"
        )
    notes = []
    pairs: tuple[tuple[Split, Split], ...] = (("train", "val"), ("train", "test"), ("val", "test"))
    for one, other in pairs:
        shared = [label for label in listing.get(one, {}) if label in listing.get(other, {})]
        if shared:
            which = count(len(shared), noun)
            notes.append(
                f"{which} in both {one} and {other}, for example {shared[0]}: the test is not of new {plural(noun)}"
            )
    without = "" if listing.get("val") else f"; val: drawn from train's {plural(noun)} by dataset.split_seed"
    return Found(listing, f"{given}{without}", notes)


def check_fractions(fractions: Sequence[float]) -> None:
    """Raise ConfigError unless there are three that sum to 1."""
    if len(fractions) != 3 or abs(sum(fractions) - 1) > 1e-6:
        raise ConfigError(
            f"dataset.split_fractions is {list(fractions)}: it must be three numbers, of train, val and test, "
            "that sum to 1"
        )


def draw_splits(given: Sequence[Split | None], fractions: Sequence[float], seed: int) -> dict[Split, list[int]]:
    """The numbers of each split's classes, from the split that each was given or None. What is not given is drawn: all
    splits, or val from the classes of train.
    """
    known = {split: [i for i, where in enumerate(given) if where == split] for split in SPLITS}
    rng = random.Random(seed)

    def shuffle(classes: list[int]) -> list[int]:
        return sorted(classes, key=lambda _: rng.random())  # Python guarantees the numbers of random() only

    if known["train"] and not known["val"]:
        train, val, _ = fractions
        number = max(1, round(len(known["train"]) * val / (train + val))) if val else 0
        drawn = shuffle(known["train"])
        return known | {"val": sorted(drawn[:number]), "train": sorted(drawn[number:])}
    free = shuffle([i for i, where in enumerate(given) if where is None])
    ends = [round(len(free) * sum(fractions[:i])) for i in range(4)]
    return {split: sorted([*known[split], *free[ends[i] : ends[i + 1]]]) for i, split in enumerate(SPLITS)}


def join(splits: Mapping[Split, Sequence[int]], split: Part) -> list[int]:
    """The numbers of one split, or of all together, ascending."""
    return sorted(number for part in splits.values() for number in part) if split == "all" else list(splits[split])


@dataclass(frozen=True)
class Choice:
    """Which classes of a split can be drawn from: those with enough examples for a task."""

    sizes: Sequence[int]  # examples of each class
    names: Sequence[str]
    nouns: tuple[str, str]  # for a class and for an example, in messages
    fractions: Sequence[float]  # of the splits
    skip: bool  # leave small classes out, instead of refusing

    def choose(self, split: Part, classes: Sequence[int], shape: TaskShape, least: int) -> list[int]:
        """The classes with enough examples. Raises ConfigError if fewer than `least` have, or one has not and none is
        to be skipped.
        """
        if not classes:
            raise ConfigError(f"{split} has no {plural(self.nouns[0])}: dataset.split_fractions is {self.fractions}")
        needed, (group, example) = shape.shots + shape.queries, self.nouns
        asked = f"shots + queries is {shape.shots} + {shape.queries} = {needed}"
        small = sorted((self.sizes[number], number) for number in classes if self.sizes[number] < needed)
        if small and not self.skip:
            size, number = small[0]
            raise ConfigError(
                f"{asked}: {len(small)} of the {count(len(classes), group)} of {split} have fewer {plural(example)}, "
                f"{self.names[number]} only {size}: ask for fewer, or set dataset.small_classes=skip"
            )
        left = [number for number in classes if self.sizes[number] >= needed]
        if small and len(left) < least:
            wanted = f"ways is {least}" if least > 1 else asked
            raise ConfigError(
                f"{wanted}: {len(left)} of the {count(len(classes), group)} of {split} are left, the others have "
                f"fewer than shots + queries = {needed} {plural(example)} and dataset.small_classes is skip"
            )
        return left


def plural(noun: str) -> str:
    return count(0, noun).partition(" ")[2]
