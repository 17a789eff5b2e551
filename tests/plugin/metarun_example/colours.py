"""A random layer on a picture's mean colour: an example of an encoder in a package of its own."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import EncoderTraits


@register("encoder", "colours", EncoderTraits(reads="pictures", learned_from="nothing"))
@dataclass(frozen=True)
class Colours:
    """Features of one picture at a time, so that they do not depend on the others."""

    image_size: Count
    features: Count

    @property
    def size(self) -> int:
        return self.features

    def encode(self, items: Tensor) -> Tensor:
        """items: [n, 3, S, S] in 0..1 -> [n, features]."""
        weights = torch.randn(self.features, 3, generator=torch.Generator().manual_seed(0))
        return torch.stack([weights @ picture.mean((1, 2)) for picture in items])

    def identity(self) -> dict[str, Any]:
        """All that features depend on; for a network also a hash of its weights."""
        return {"image_size": self.image_size, "features": self.features}
