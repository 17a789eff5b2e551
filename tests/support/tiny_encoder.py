"""A tiny frozen network: random weights, from coarse colours to a few features."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.traits import EncoderTraits

SIZE = 5
WEIGHTS = torch.randn(SIZE, 3, generator=torch.Generator().manual_seed(0))


@register("encoder", "tiny_pictures", EncoderTraits(reads="pictures", learned_from="nothing"))
@dataclass(frozen=True)
class TinyPictures:
    """A random layer on a picture's mean colour. `seen` counts how many pictures it has encoded."""

    version: int = 1
    seen: list[int] = field(default_factory=list)

    size = SIZE

    def encode(self, items: Tensor) -> Tensor:
        self.seen.append(len(items))
        return torch.stack([WEIGHTS @ picture.mean((1, 2)) for picture in items])

    def identity(self) -> dict[str, Any]:
        return {"version": self.version}


@register("encoder", "tiny_strings", EncoderTraits(reads="strings", learned_from="nothing"))
@dataclass(frozen=True)
class TinyStrings:
    """How many of a string's characters leave each rest when divided by SIZE."""

    size = SIZE

    def encode(self, items: Sequence[str]) -> Tensor:
        return torch.stack(
            [torch.tensor([ord(c) % SIZE for c in text]).bincount(minlength=SIZE) for text in items]
        ).float()

    def identity(self) -> dict[str, Any]:
        return {}
