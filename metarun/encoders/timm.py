"""Any picture network of the package timm, with weights of a local file or fetched by name. DINOv2's and the picture
part of CLIP's are among them (`vit_small_patch14_dinov2`, `vit_base_patch16_clip_224.openai`).

Wightman 2019, https://github.com/huggingface/pytorch-image-models (Apache 2.0); weights have licences of their own.
"""

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


@register("encoder", "timm", EncoderTraits(reads="pictures", needs=("timm",), extra="timm"))
@dataclass(frozen=True)
class Timm:
    """The features before the network's classifier."""

    model: str
    path: str | None
    image_size: Count | None
    unit_length: bool
    device: torch.device

    @property
    def size(self) -> int:
        size: int = self._network.num_features
        return size if not hasattr(self._network, "head_hidden_size") else int(self._network.head_hidden_size)

    def encode(self, items: Tensor) -> Tensor:
        """Pictures [n, 1 or 3, S, S] in 0..1 -> [n, D]; those of another size are resized."""
        wanted = self._network.pretrained_cfg
        form = self.image_size or wanted["input_size"][-1], wanted["mean"], wanted["std"]
        return scale_to_unit(encode_pictures(self._network, items, *form, self.device), self.unit_length)

    def identity(self) -> dict[str, Any]:
        form = {"image_size": self.image_size, "unit_length": self.unit_length}
        return {"model": self.model, "weights": hash_weights(self._network), **form}

    @cached_property
    def _network(self) -> Any:
        """Raises ConfigError for an unknown name, weights of another network, or weights that cannot be fetched."""
        import timm

        name, _, tag = self.model.partition(".")
        if not timm.is_model(name):
            hint = did_you_mean(self.model, timm.list_models()) or ", for example resnet18"
            raise ConfigError(f"encoder.model is {self.model!r}: it must be a network of timm's{hint}")
        trained = timm.list_pretrained(f"{name}.*")
        if (tag and self.model not in trained) or (self.path is None and not trained):
            choice = f"choose from {', '.join(trained)}, or " if trained else ""
            raise ConfigError(f"encoder.model is {self.model!r}: timm has no such weights; {choice}give encoder.path")
        if self.path is not None and not Path(self.path).is_file():
            raise ConfigError(f"encoder.path is {self.path}: there is no such file; null fetches the weights by name")
        size: dict[str, Any] = {"img_size": self.image_size} if self.image_size and "vit" in self.model else {}
        try:
            network: Any = timm.create_model(self.model, pretrained=self.path is None, **size)
        except list_fetch_errors() as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"encoder.model is {self.model!r}: its weights cannot be fetched: {reason}; give a file as encoder.path"
            ) from error
        last = network.pretrained_cfg["classifier"]  # its name, or those of several
        network.reset_classifier(0)
        if self.path is not None:
            without = (last,) if isinstance(last, str) else last
            fill(network, "encoder.path", Path(self.path), self.model, without=without)
        return network.eval().to(self.device)
