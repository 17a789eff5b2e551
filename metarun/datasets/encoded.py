"""A dataset seen through an encoder: its tasks hold features instead of pictures, texts or molecules.

The features of a whole dataset are made when they are first asked for, once for all methods and kinds of task, and are
mapped from the cache afterwards.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Generator, Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import declaration, known, registered_traits
from metarun.config.traits import EncoderTraits
from metarun.core.threads import share_among_threads
from metarun.core.types import Dataset, Encodable, Encoder, Split, TaskShape, TaskSource
from metarun.datasets.preprocessing import Features
from metarun.datasets.sampling.augment import UNCHANGED, AsStored, PictureTransform
from metarun.datasets.storage.growing import grow

KNOWN_CLASSES = {"imagenet": ("miniimagenet", "tieredimagenet")}  # datasets all of whose classes are among the learned


def replace_examples(source: Any, rows: Tensor, numbers: Tensor | None = None) -> TaskSource:
    """The same tasks with `rows` [m, D] in place of the table's examples; of those `numbers` [m] alone, if given."""
    table = source.table
    if numbers is not None:
        place = torch.full((len(table.examples),), -1, device=table.rows.device)
        place[numbers.to(place.device)] = torch.arange(len(numbers), device=place.device)
        table = replace(table, rows=place[table.rows])
    table = replace(table, examples=rows.to(table.rows.device))
    how: dict[str, Any] = {"transform": AsStored("numbers")} if hasattr(source, "transform") else {"inputs": "numbers"}
    replaced: TaskSource = replace(source, table=table, **how)
    return replaced


def number_examples(source: Any) -> TaskSource:
    """The same tasks, in which an example is its number in the dataset's contents, [1]."""
    return replace_examples(source, torch.arange(len(source.table.examples))[:, None])


@dataclass(frozen=True)
class Encoded:
    """The dataset, whose examples are vectors [D]."""

    dataset: Dataset
    encoder: Encoder
    settings: Mapping[str, Any]  # of the encoder

    def __post_init__(self) -> None:
        held = self.dataset.preprocessing()["kind"] if isinstance(self.dataset, Encodable) else "numbers"
        if held != self.traits.reads:
            fitting = [name for name in known("encoder") if declaration("encoder", name).traits.reads == held]
            remedy = f"choose {', '.join(fitting)}" if fitting else "leave the encoder out"
            raise ConfigError(f"encoder={self.name} reads {self.traits.reads}, this dataset has {held}: {remedy}")

    @property
    def name(self) -> str:
        return str(self.settings["name"])

    @property
    def traits(self) -> EncoderTraits:
        """What the encoder reads, and what it was learned from."""
        traits: EncoderTraits = registered_traits(type(self.encoder))
        return traits

    def prepare(self) -> None:
        """Prepare the dataset and encode what it holds. Raises ConfigError, also as the encoder does."""
        self.dataset.prepare()
        _ = self.features

    def tasks(self, split: Split, shape: TaskShape) -> TaskSource:
        """Tasks of features, of the same classes and examples as the dataset's own. Raises ConfigError."""
        source: Any = self.dataset.tasks(split, shape)
        transform = getattr(source, "transform", None)
        if source.table.rotated or (isinstance(transform, PictureTransform) and transform != UNCHANGED):
            raise ConfigError(
                f"encoder={self.name} reads each picture once and as it is: set dataset.rotations_train=none, crop=0, "
                "flip=false, jitter=0, mean=null and std=null"
            )
        return replace_examples(source, self.features)

    def describe(self) -> str:
        """What the dataset says of itself, and where the features are."""
        return (
            f"{self.dataset.describe()}\nfeatures by {self.name}: {self.traits.reads} become vectors, kept in the cache"
        )

    def notes(self) -> list[str]:
        """The dataset's own, and whether the encoder's weights may have seen the test classes."""
        return [*self.dataset.notes(), f"encoder {self.name}: classes seen in pre-training: {self.seen}"]

    def identity(self) -> dict[str, Any]:
        """The dataset's, with the encoder's and the classes that it may have seen."""
        encoder = {"name": self.name, **self.encoder.identity(), "classes_seen": self.seen}
        return {**self.dataset.identity(), "encoder": encoder}

    def preprocessing(self) -> dict[str, Any]:
        """The dataset's, with the encoder's behind it."""
        encoder = {"encoder": {**self.settings}, "identity": self.encoder.identity()}
        return {"kind": Features.kind, **encoder, "inputs": self.dataset.preprocessing()}

    @property
    def seen(self) -> str:
        """Which of the test classes the weights were learned from: "yes, 20 of 20", "no", "unknown"."""
        if self.traits.learned_from == "nothing":
            return "no"
        identity = self.dataset.identity()
        if identity["name"] not in KNOWN_CLASSES.get(self.traits.learned_from, ()):
            return "unknown"
        number = identity["classes"]["test"]
        return f"yes, {number} of {number}"

    @cached_property
    def features(self) -> Tensor:
        """Of all examples, [n, D], mapped from the cache; encodes what is missing. Raises ConfigError."""
        assert isinstance(self.dataset, Encodable)
        contents = self.dataset.contents()
        digest = hashlib.sha256(json.dumps(self.encoder.identity(), sort_keys=True).encode()).hexdigest()
        name = f"features/{self.name}-{digest[:16]}/{contents.digest[:32]}.f32"

        def encode(items: Any) -> Tensor:
            shown = UNCHANGED(items, Generator()) if isinstance(items, Tensor) else items
            return share_among_threads(self.encoder.encode, shown)

        return grow(name, contents.number, contents.read, encode, f"features by {self.name}")
