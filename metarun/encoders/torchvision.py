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

from metarun.config.errors import ConfigError
from metarun.config.registry import register
from metarun.config.schema import Count, Positive
from metarun.config.traits import EncoderTraits
from metarun.core.classifiers import LAST, check_model, drop_last
from metarun.core.weight_files import fill
from metarun.encoders.files import hash_file, scale_to_unit
from metarun.encoders.pictures import encode_pictures


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
        check_model("encoder.model", self.model)
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
        network = drop_last(torchvision.models.get_model(self.model, weights=None))
        fill(network, "encoder.path", Path(self.path or ""), self.model, without=LAST)
        return network.eval().to(self.device)
