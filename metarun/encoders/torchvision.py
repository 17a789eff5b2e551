"""Any image classifier of torchvision without its last part, with weights of a local file.

Unlike `backbone=torchvision` it is not trained, so that it may have layers of any kind, and its norm layers keep their
averages.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from metarun.config.errors import ConfigError, did_you_mean
from metarun.config.registry import register
from metarun.config.schema import Count, Positive
from metarun.config.traits import EncoderTraits
from metarun.encoders.files import hash_file, load_tensors, scale_to_unit

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
        with torch.no_grad():
            return torch.cat([self._encode(picture[None]).cpu() for picture in items])

    def identity(self) -> dict[str, Any]:
        form = {"image_size": self.image_size, "mean": self.mean, "std": self.std, "unit_length": self.unit_length}
        return {"model": self.model, "weights": hash_file(Path(self.path or "")), **form}

    def _encode(self, x: Tensor) -> Tensor:
        x = x.to(self.device).expand(-1, 3, -1, -1)
        if x.shape[-1] != self.image_size:
            side = (self.image_size, self.image_size)
            x = F.interpolate(x, side, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values, device=self.device).view(3, 1, 1) for values in (self.mean, self.std))
        return scale_to_unit(self._network((x - mean) / std).flatten(1), self.unit_length)

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
