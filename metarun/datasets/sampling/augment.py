"""From stored examples to what a network sees.

Pictures become values in 0..1; in training they may be changed at random; they are normalised where that is set. All
changes are made on the device for a whole batch at once, and each picture's draw comes from the step's generator.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.traits import Inputs

GREY = (0.2989, 0.587, 0.114)  # weights of red, green and blue, as in torchvision


class Transform(Protocol):
    """From stored examples [*s, *example] to a network's inputs, of the same shape."""

    @property
    def inputs(self) -> Inputs: ...

    def __call__(self, examples: Tensor, generator: torch.Generator) -> Tensor: ...


@dataclass(frozen=True)
class AsStored:
    """Rows that stay as they are stored."""

    inputs: Inputs

    def __call__(self, examples: Tensor, generator: torch.Generator) -> Tensor:
        return examples


@dataclass(frozen=True)
class PictureTransform:
    """torchvision's RandomCrop, RandomHorizontalFlip, ColorJitter and Normalize; by default values in 0..1 only."""

    crop: int = 0  # pixels of black padding on each side; a random window of the picture's size is cut out
    flip: bool = False  # mirror left and right, with probability 1/2
    jitter: float = (
        0.0  # brightness, contrast, saturation, in this order: each times a factor in 1 - jitter..1 + jitter
    )
    mean: Sequence[float] | None = None  # of each channel, subtracted
    std: Sequence[float] | None = None  # of each channel, divided by

    @property
    def inputs(self) -> Inputs:
        return "numbers"

    def __call__(self, examples: Tensor, generator: torch.Generator) -> Tensor:
        """[*s, C, H, W] uint8 -> the same shape, float."""
        x = examples.flatten(0, -4).float().div_(255)  # [n, C, H, W]
        if self.crop:
            x = crop_randomly(x, self.crop, generator)
        if self.flip:
            x = torch.where(_draw(x, generator) < 0.5, x.flip(-1), x)
        if self.jitter:
            x = jitter_colours(x, self.jitter, generator)
        if self.mean is not None and self.std is not None:
            parts = zip(x.unbind(1), self.mean, self.std)  # Python numbers: tensors would be copied to the device
            x = torch.stack([(channel - mean) / std for channel, mean, std in parts], 1)
        return x.view(examples.shape)


UNCHANGED = PictureTransform()


def crop_randomly(x: Tensor, padding: int, generator: torch.Generator) -> Tensor:
    """Shift each picture of x [n, C, H, W] by up to `padding` pixels in both directions; what comes in is black."""
    n, _, height, width = x.shape
    shift = torch.randint(2 * padding + 1, (2, n, 1), generator=generator, device=generator.device).to(x.device)
    rows = shift[0] + torch.arange(height, device=x.device)  # [n, H]
    columns = shift[1] + torch.arange(width, device=x.device)  # [n, W]
    picture = torch.arange(n, device=x.device)[:, None, None]
    padded = F.pad(x, (padding,) * 4).permute(0, 2, 3, 1)  # [n, H + 2p, W + 2p, C]
    return padded[picture, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def jitter_colours(x: Tensor, strength: float, generator: torch.Generator) -> Tensor:
    """Blend each picture of x [n, C, H, W], values in 0..1, with black, its mean grey and its grey picture in turn."""

    def grey(x: Tensor) -> Tensor:
        weights = GREY if x.shape[1] == 3 else (1.0,)
        return torch.stack([weight * channel for weight, channel in zip(weights, x.unbind(1))]).sum(0)[:, None]

    def blend(x: Tensor, other: Tensor) -> Tensor:
        factor = 1 + strength * (2 * _draw(x, generator) - 1)
        return (factor * x + (1 - factor) * other).clamp(0, 1)

    x = blend(x, torch.zeros_like(x))
    x = blend(x, grey(x).mean((-2, -1), keepdim=True))
    return blend(x, grey(x))


def _draw(x: Tensor, generator: torch.Generator) -> Tensor:
    """A number in 0..1 for each picture: [n, 1, 1, 1]."""
    return torch.rand(len(x), 1, 1, 1, generator=generator, device=generator.device).to(x.device)
