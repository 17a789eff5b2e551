"""A network for rows of n-grams, the inputs of the text datasets."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.registry import register
from metarun.config.schema import Count, Positive
from metarun.config.traits import BackboneTraits
from metarun.core.types import Backbone

TINY = 1e-12  # makes the length of an empty row's sum differentiable


@register("backbone", "ngram", BackboneTraits(inputs="ngrams"))
@dataclass(eq=False)
class NGram(Backbone):
    """The sum of a vector per n-gram, scaled to one length (hashed as in Joulin et al. 2017, which takes the mean).

    n-grams whose hashes are equal modulo `buckets` share a vector. On features of length r the squared distance of
    prototypical networks is 2 r^2 (1 - cosine), so r^2 acts as an inverse temperature.
    """

    buckets: Count
    features: Count
    length: Positive
    input_shape: tuple[int, ...]

    def __post_init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(self.buckets, self.features)  # N(0, 1)
        self.feature_shape = (self.features,)
        self.feature_size = self.features

    def forward(self, x: Tensor) -> Tensor:
        """x: [n, L] hashes, or 0 at empty places -> [n, features]."""
        vectors = F.embedding(x % self.buckets, self.embedding.weight)  # [n, L, features]
        total = torch.einsum("nl,nld->nd", (x > 0).to(vectors.dtype), vectors)
        return self.length * total * (total.square().sum(-1, keepdim=True) + TINY).rsqrt()
