"""Tasks of regression in a table: a column of tasks, numbers x and values y."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Fraction, Whole
from metarun.config.traits import DatasetTraits
from metarun.core.types import Split, TaskShape
from metarun.datasets.grouped import Grouped
from metarun.datasets.preprocessing import Numbers
from metarun.datasets.sampling.measured import ValueSampler
from metarun.datasets.storage.rows import ROWS, Example, find_rows, read_point_table
from metarun.datasets.storage.splits import Found

LARGE = 100.0  # numbers beyond this are hard to learn for networks whose weights are drawn for numbers near 1


@register("dataset", "regression", DatasetTraits(kind="regression", duplicates=True))
@dataclass(frozen=True)
class Regression(Grouped):
    """Tasks whose `shots` and `queries` are points; see configs/dataset/regression.yaml. `ways` has no meaning."""

    path: str | None
    split_fractions: list[Fraction]
    split_seed: Whole
    small_classes: Literal["refuse", "skip"]
    data_dir: Path
    device: torch.device

    collection = "regression"
    nouns = ("task", "point")
    wanted = "a table of tasks, x and y"
    form = "numbers"

    def tasks(self, split: Split, shape: TaskShape) -> ValueSampler:
        """Raises ConfigError if the shape asks for more points than a task of the split has."""
        table, values = self.make_table(self.choose(split, shape))
        return ValueSampler(table, values, shape)

    def preprocessing(self) -> dict[str, Any]:
        """Numbers as they are."""
        return Numbers().to_json()

    def list_doubts(self) -> Iterator[str]:
        """Numbers of another size than networks are made for."""
        for name, numbers in (("x", self.packed.rows), ("y", self.packed.values)):
            low, high = float(numbers.min()), float(numbers.max())
            if max(-low, high) > LARGE:
                yield f"{name} is from {low:g} to {high:g}: networks learn numbers near 1 better, rescale the columns"

    def encode(self, keys: Sequence[Any]) -> NDArray[Any]:
        return np.array(keys, dtype=np.float32)

    def find(self) -> Found[Example]:
        found = find_rows(self.root, ROWS, read_point_table, self.nouns[0], self.wanted)
        examples = (example for part in found.listing.values() for points in part.values() for example in points)
        forms = {(len(x), len(y)) for x, y, _ in examples}
        if len(forms) > 1:
            raise ConfigError(f"{self.root}: its files differ in the number of columns x and y")
        return found
