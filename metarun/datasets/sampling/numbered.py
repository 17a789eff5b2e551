"""Pictures with a random number each, as data: a network that drops features at random seeds its draws by it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.core.types import Episode, Examples, TaskSource, TaskSpec

NUMBERS = 2**22  # float32 represents these, and four times as many, exactly


@dataclass(frozen=True)
class Numbered:
    """Another source's tasks; each picture [C, H, W] gets one more channel, filled with its number.

    `spec` is the other source's: at validation and test, pictures have no numbers.
    """

    source: TaskSource

    @property
    def spec(self) -> TaskSpec:
        return self.source.spec

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        return Episode(*(Examples(add_numbers(x, generator), y) for x, y in self.source.sample(num_tasks, generator)))


def add_numbers(x: Tensor, generator: torch.Generator) -> Tensor:
    """[T, n, C, H, W] -> [T, n, C + 1, H, W]."""
    tasks, n, _, height, width = x.shape
    numbers = torch.randint(NUMBERS, (tasks, n, 1, 1, 1), generator=generator, device=generator.device)
    return torch.cat([x, numbers.to(x).expand(-1, -1, -1, height, width)], 2)
