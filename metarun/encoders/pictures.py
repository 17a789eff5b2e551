"""What encoders of pictures share: resize and standardise, one picture after another."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def encode_pictures(
    network: Callable[[Tensor], Tensor],
    pictures: Tensor,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    device: torch.device,
) -> Tensor:
    """Pictures [n, 1 or 3, S, S] in 0..1 -> what the network makes of each alone, [n, D], on the CPU.

    Those of another size are resized; one channel is repeated to three.
    """
    shift, scale = (torch.tensor(values, device=device).view(3, 1, 1) for values in (mean, std))

    def encode(x: Tensor) -> Tensor:
        x = x[None].to(device).expand(-1, 3, -1, -1)
        if x.shape[-1] != image_size:
            x = F.interpolate(x, (image_size, image_size), mode="bicubic", antialias=True).clamp(0, 1)
        return network((x - shift) / scale).flatten(1).cpu()

    with torch.no_grad():
        return torch.cat([encode(picture) for picture in pictures])
