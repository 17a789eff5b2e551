"""Pictures with a number of their own, for networks that drop features at random: drawn with the task, as data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.core.types import Episode, Examples, TaskSource, TaskSpec

NUMBERS = 2**22  # float32 holds them exactly, and four times as many


@dataclass(frozen=True)
class Numbered:
    """Another source's tasks, their pictures [C, H, W] with a further channel that is their number everywhere.

    `spec` is the other source's: what is tested has no numbers.
    """

    source: TaskSource

    @property
    def spec(self) -> TaskSpec:
        return self.source.spec

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        return Episode(*(Examples(numbered(x, generator), y) for x, y in self.source.sample(num_tasks, generator)))


def numbered(x: Tensor, generator: torch.Generator) -> Tensor:
    """[T, n, C, H, W] -> [T, n, C + 1, H, W]."""
    tasks, n, _, height, width = x.shape
    drawn = torch.randint(NUMBERS, (tasks, n, 1, 1, 1), generator=generator, device=generator.device)
    return torch.cat([x, drawn.to(x).expand(-1, -1, -1, height, width)], 2)
