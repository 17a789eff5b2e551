"""Features that a network made before, with their labels: classes of vectors in arrays."""

import math
from collections.abc import Sequence
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
from metarun.core.types import Part, TaskShape
from metarun.datasets.grouped import Grouped
from metarun.datasets.preprocessing import Numbers
from metarun.datasets.sampling.augment import AsStored
from metarun.datasets.sampling.episodes import EpisodeSampler
from metarun.datasets.storage.rows import ARRAYS, Example, find_rows, read_feature_file
from metarun.datasets.storage.splits import Found


@register("dataset", "features", DatasetTraits(kind="classification", pooled=True))
@dataclass(frozen=True)
class Features(Grouped):
    """Classes of vectors; see configs/dataset/features.yaml."""

    path: str | None
    split_fractions: list[Fraction]
    split_seed: Whole
    small_classes: Literal["refuse", "skip"]
    data_dir: Path
    device: torch.device

    collection = "features"
    nouns = ("class", "example")
    wanted = "the arrays embeddings and labels"
    form = "float32"

    def tasks(self, split: Part, shape: TaskShape) -> EpisodeSampler:
        """Episodes of vectors [D]. Raises ConfigError if the shape asks for more than the split has."""
        classes = self.choose(split, shape, shape.ways)
        names = [self.packed.groups[number].name for number in classes]
        return EpisodeSampler(
            self.make_table(classes)[0], shape, transform=AsStored("numbers"), split=split, names=names
        )

    def preprocessing(self) -> dict[str, Any]:
        """Numbers as they are."""
        return Numbers().to_json()

    def encode(self, keys: Sequence[tuple[tuple[int, ...], bytes]]) -> NDArray[Any]:
        shapes = {shape for shape, _ in keys}
        if len(shapes) > 1:
            sizes = " and ".join(str(math.prod(shape)) for shape in sorted(shapes))
            raise ConfigError(f"{self.root}: its files have embeddings of {sizes} numbers")
        return np.frombuffer(b"".join(content for _, content in keys), np.float32).reshape(len(keys), *shapes.pop())

    def find(self) -> Found[Example]:
        return find_rows(self.root, ARRAYS, read_feature_file, self.nouns[0], self.wanted)
