"""Any image classifier of torchvision without its last part, with weights of a local file.

Unlike `backbone=torchvision` it is not trained, so that it may have layers of any kind, and its norm layers keep their
averages.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from metarun.config.errors import ConfigError, did_you_mean
from metarun.config.registry import register
from metarun.config.schema import Count, Positive
from metarun.config.traits import EncoderTraits
from metarun.encoders.files import hash_file, load_tensors, scale_to_unit
from metarun.encoders.pictures import encode_pictures

LAST = ("fc", "classifier", "head", "heads")  # names of the last part in torchvision's networks


@register("encoder", "torchvision", EncoderTraits(reads="pictures"))
@dataclass(frozen=True)
class TorchVision:
    """The inputs of the classifier's last part."""

    model: str
    path: str | None
    image_size: Count
    mean: list[float]
    std: list[Positive]
    unit_length: bool
    device: torch.device

    def __post_init__(self) -> None:
        models = torchvision.models.list_models(module=torchvision.models)
        if self.model not in models:
            hint = did_you_mean(self.model, models) or ", for example resnet18"
            raise ConfigError(f"encoder.model is {self.model!r}: it must be a classifier of torchvision's{hint}")
        if self.path is None or not Path(self.path).is_file():
            raise ConfigError(
                f"encoder.path is {self.path}: it must be a file with weights of {self.model}, .pth or .safetensors"
            )

    @cached_property
    def size(self) -> int:
        return self.encode(torch.zeros(1, 3, self.image_size, self.image_size)).shape[1]

    def encode(self, items: Tensor) -> Tensor:
        """Pictures [n, 1 or 3, S, S] in 0..1 -> [n, D]; those of another size are resized."""
        found = encode_pictures(self._network, items, self.image_size, self.mean, self.std, self.device)
        return scale_to_unit(found, self.unit_length)

    def identity(self) -> dict[str, Any]:
        form = {"image_size": self.image_size, "mean": self.mean, "std": self.std, "unit_length": self.unit_length}
        return {"model": self.model, "weights": hash_file(Path(self.path or "")), **form}

    @cached_property
    def _network(self) -> nn.Module:
        """Raises ConfigError if the file has weights of another network."""
        network: nn.Module = torchvision.models.get_model(self.model, weights=None)
        try:
            network.load_state_dict(load_tensors("torchvision", Path(self.path or "")))
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise ConfigError(
                f"encoder.path is {self.path}: its weights are not those of {self.model}: {reason}"
            ) from error
        for name in LAST:
            if hasattr(network, name):
                setattr(network, name, nn.Identity())
        return network.eval().to(self.device)
