"""What was learned, class by class: how often each is told, and which are taken for which."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from metarun.core.files import write_text

SHOWN = 5  # of the hardest classes and pairs
FEWEST = 20  # queries behind a share that is shown: below, chance picks the hardest


@dataclass(frozen=True)
class Pairs:
    """Ordered pairs of classes that were in one task: `asked` queries of the first, `taken` for the second."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    asked: NDArray[np.float64]
    taken: NDArray[np.float64]

    @classmethod
    def count(cls, answers: NDArray[np.float64], classes: NDArray[np.int64]) -> "Pairs":
        """Add up all tasks. answers: [tasks, N, N], queries of the row's label taken for the column's; classes:
        [tasks, N], the class of each label.
        """
        number = int(classes.max()) + 1
        codes, place = np.unique(classes[:, :, None] * number + classes[:, None, :], return_inverse=True)
        asked = np.broadcast_to(answers.sum(2, keepdims=True), answers.shape)
        sums = [np.bincount(place.ravel(), values.ravel()).astype(np.float64) for values in (asked, answers)]
        return cls(codes // number, codes % number, *sums)

    def among(self, chosen: NDArray[np.bool_]) -> "Pairs":
        """Some of the pairs."""
        return Pairs(self.first[chosen], self.second[chosen], self.asked[chosen], self.taken[chosen])

    @property
    def shares(self) -> NDArray[np.float64]:
        return self.taken / self.asked

    @property
    def right(self) -> "Pairs":
        """Each class with itself."""
        return self.among(self.first == self.second)

    @property
    def wrong(self) -> "Pairs":
        """Each class with those that it was taken for."""
        return self.among((self.first != self.second) & (self.taken > 0))

    def list_hardest(self, names: Sequence[str]) -> tuple[list[list[str | float]], list[list[str | float]]]:
        """The classes of least accuracy as [name, accuracy], and the pairs most often confused as [name, name, share].

        Only where enough queries were asked.
        """

        def name(number: int) -> str:
            return names[number] if names else f"class {number}"

        right, wrong = (pairs.among(pairs.asked >= FEWEST) for pairs in (self.right, self.wrong))
        worst = np.argsort(right.shares, kind="stable")[:SHOWN]
        often = np.argsort(-wrong.shares, kind="stable")[:SHOWN]
        classes: list[list[str | float]] = [[name(right.first[i]), float(right.shares[i])] for i in worst]
        pairs: list[list[str | float]] = [
            [name(wrong.first[i]), name(wrong.second[i]), float(wrong.shares[i])] for i in often
        ]
        return classes, pairs

    def write(self, path: Path, names: Sequence[str]) -> None:
        """Write a line for each class: its accuracy, and what it was most often taken for, by the share where both were
        in the task.
        """
        wrong, table = self.wrong, io.StringIO(newline="")
        writer = csv.writer(table)
        writer.writerow(["class", "name", "queries", "accuracy", "taken for", "share"])
        for number, asked, share in zip(self.right.first, self.right.asked, self.right.shares):
            others = wrong.among(wrong.first == number)
            most = int(np.argmax(others.shares)) if len(others.asked) else None
            mistake = ("", "") if most is None else (int(others.second[most]), float(others.shares[most]))
            writer.writerow([int(number), names[number] if names else "", int(asked), float(share), *mistake])
        write_text(path, table.getvalue())
