"""The picture part of a network of the package open_clip_torch, with weights of a local file or fetched by name.

Radford et al. 2021, https://arxiv.org/abs/2103.00020 (CLIP); Cherti et al. 2023, https://arxiv.org/abs/2212.07143
(OpenCLIP, MIT licence); weights have licences of their own.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from metarun.config.errors import ConfigError, did_you_mean
from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import EncoderTraits
from metarun.core.weight_files import fill
from metarun.encoders.files import hash_weights, list_fetch_errors, scale_to_unit
from metarun.encoders.pictures import encode_pictures


@register("encoder", "open_clip", EncoderTraits(reads="pictures", needs=("open_clip",), extra="open_clip"))
@dataclass(frozen=True)
class OpenClip:
    """The vectors that are compared with those of texts."""

    model: str
    weights: str
    path: str | None
    image_size: Count | None
    unit_length: bool
    device: torch.device

    @cached_property
    def size(self) -> int:
        return self.encode(torch.zeros(1, 3, self._side, self._side)).shape[1]

    def encode(self, items: Tensor) -> Tensor:
        """Pictures [n, 1 or 3, S, S] in 0..1 -> [n, D]; those of another size are resized."""
        mean, std = self._network.image_mean, self._network.image_std
        found = encode_pictures(self._network, items, self._side, mean, std, self.device)
        return scale_to_unit(found, self.unit_length)

    def identity(self) -> dict[str, Any]:
        form = {"image_size": self.image_size, "unit_length": self.unit_length}
        return {"model": self.model, "weights": hash_weights(self._network), **form}

    @property
    def _side(self) -> int:
        side = self._network.image_size
        return int(side if isinstance(side, int) else side[0])

    @cached_property
    def _network(self) -> Any:
        """Raises ConfigError for an unknown name, weights of another network, or weights that cannot be fetched."""
        import open_clip

        if self.model not in (models := open_clip.list_models()):
            hint = did_you_mean(self.model, models) or ", for example ViT-B-32"
            raise ConfigError(f"encoder.model is {self.model!r}: it must be a network of open_clip's{hint}")
        tags = open_clip.list_pretrained_tags_by_model(self.model)
        if self.path is None and self.weights not in tags:
            raise ConfigError(
                f"encoder.weights is {self.weights!r}: for {self.model} choose from {', '.join(tags)}, "
                "or give a file as encoder.path"
            )
        if self.path is None:
            self._fetch()
        with silence():
            pretrained = self.weights if self.path is None else None
            network = open_clip.create_model(self.model, pretrained, force_image_size=self.image_size).visual
        if self.path is not None:
            fill(network, "encoder.path", Path(self.path), self.model, prefix="visual.")
        return network.eval().to(self.device)

    def _fetch(self) -> None:
        """Bring the weights into the cache of the hub. Raises ConfigError if they are not there, and cannot be had."""
        import open_clip

        try:
            with silence():
                open_clip.download_pretrained(open_clip.get_pretrained_cfg(self.model, self.weights))
        except list_fetch_errors(RuntimeError) as error:  # the last is open_clip's, for a damaged file
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"encoder.weights is {self.weights!r}: they cannot be fetched: {reason}; give a file as encoder.path"
            ) from error


@contextmanager
def silence() -> Iterator[None]:
    """Drop log messages: those of open_clip, which speaks of random weights before a file fills them."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
