"""What a network sees of a stored example.

Of a picture values in 0..1, changed at random in training, normalised where that is set. The changes are made for a
whole batch at once, on its device, each picture's drawn from the step's generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.core.types import Inputs

GREY = (0.2989, 0.587, 0.114)  # as torchvision


class Seen(Protocol):
    """From stored examples [*s, *example] to a network's inputs."""

    inputs: ClassVar[Inputs]

    def __call__(self, examples: Tensor, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class Stored:
    """Rows of n-grams are seen as they are."""

    inputs: ClassVar[Inputs] = "ngrams"

    def __call__(self, examples: Tensor, generator: torch.Generator) -> Tensor:
        return examples


@dataclass(frozen=True)
class View:
    """Crops, flips and colours as torchvision's transforms of these names; by default values in 0..1 and no more."""

    crop: int = 0  # pixels of black padding on each side, of which a random window of the picture's size is cut
    flip: bool = False  # left and right, every other picture
    jitter: float = 0.0  # brightness, contrast and saturation, in this order, each times 1 - jitter .. 1 + jitter
    mean: Sequence[float] | None = None  # of each channel, subtracted
    std: Sequence[float] | None = None  # divided by
    inputs: ClassVar[Inputs] = "numbers"

    def __call__(self, examples: Tensor, generator: torch.Generator) -> Tensor:
        """[*s, C, H, W] uint8 -> the same shape, float."""
        x = examples.flatten(0, -4).float().div_(255)  # [n, C, H, W]
        if self.crop:
            x = cropped(x, self.crop, generator)
        if self.flip:
            x = torch.where(_draw(x, generator) < 0.5, x.flip(-1), x)
        if self.jitter:
            x = jittered(x, self.jitter, generator)
        if self.mean is not None and self.std is not None:
            parts = zip(x.unbind(1), self.mean, self.std)  # numbers, not tensors, which would have to be sent
            x = torch.stack([(channel - mean) / std for channel, mean, std in parts], 1)
        return x.view(examples.shape)


AS_IS = View()


def cropped(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """x: [n, C, H, W], shifted by up to `padding` pixels either way, black coming in."""
    n, _, height, width = x.shape
    shift = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=generator.device).to(x.device)
    rows = shift[0] + torch.arange(height, device=x.device)  # [n, H]
    columns = shift[1] + torch.arange(width, device=x.device)  # [n, W]
    picture = torch.arange(n, device=x.device)[:, None, None]
    padded = F.pad(x, (padding,) * 4).permute(0, 2, 3, 1)  # [n, H + 2p, W + 2p, C]
    return padded[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def jittered(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """x: [n, C, H, W] in 0..1, blended by random weights with black, with its mean grey and with its own grey."""

    def grey(x: Tensor) -> Tensor:
        weights = GREY if x.shape[1] == 3 else (1.0,)
        return torch.stack([weight * channel for weight, channel in zip(weights, x.unbind(1))]).sum(0)[:, None]

    def blended(x: Tensor, other: Tensor) -> Tensor:
        factor = 1 + strength * (2 * _draw(x, generator) - 1)
        return (factor * x + (1 - factor) * other).clamp(0, 1)

    x = blended(x, torch.zeros_like(x))
    x = blended(x, grey(x).mean((-2, -1), keepdim=True))
    return blended(x, grey(x))


def _draw(x: Tensor, generator: torch.Generator) -> Tensor:
    """[n, 1, 1, 1] in 0..1."""
    return torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device).to(x.device)
