"""Few-shot episodes drawn from a table of images: whole batches of tasks, on the device, without a loop."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.errors import ConfigError
from metarun.types import Episode, Examples, TaskShape, TaskSpec


@dataclass(frozen=True)
class EpisodeSampler:
    """N-way K-shot episodes; a class is one row of the table, or one of `variants` neighbouring rows.

    With `variants=4` the rows 4c..4c+3 are the rotations of class c: a task draws N classes and, for each,
    one rotation, so that two rotations of one class never meet in a task. With `variants=1` every row is a
    class of its own.
    """

    images: Tensor  # [classes * variants, per_class, C, H, W] uint8
    shape: TaskShape
    variants: int = 1

    def __post_init__(self) -> None:
        ways, shots, queries = self.shape
        classes, per_class = len(self.images) // self.variants, self.images.shape[1]
        if ways > classes:
            raise ConfigError(f"ways is {ways}: this split has {classes} classes")
        if shots + queries > per_class:
            raise ConfigError(
                f"shots + queries is {shots} + {queries} = {shots + queries}: "
                f"each class has {per_class} images, and support and query must not share any"
            )

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", tuple(self.images.shape[2:]), self.shape.ways)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """support.x [T, N*K, C, H, W] in 0..1, query.x [T, N*Q, C, H, W]; labels 0..N-1 in class-draw order."""
        ways, shots, queries = self.shape
        rows = distinct(len(self.images) // self.variants, ways, (num_tasks,), generator)  # [T, N]
        if self.variants > 1:
            draw = torch.randint(self.variants, rows.shape, generator=generator, device=generator.device)
            rows = rows * self.variants + draw
        members = distinct(self.images.shape[1], shots + queries, (num_tasks, ways), generator)  # [T, N, K+Q]
        rows, members = rows.to(self.images.device), members.to(self.images.device)
        x = self.images[rows[..., None], members].float() / 255  # [T, N, K+Q, C, H, W]
        y = torch.arange(ways, device=x.device)[:, None].expand(members.shape)  # [T, N, K+Q]

        def part(start: int, stop: int) -> Examples:
            return Examples(x[:, :, start:stop].flatten(1, 2), y[:, :, start:stop].flatten(1, 2))

        return Episode(support=part(0, shots), query=part(shots, shots + queries))

    def minibatches(self, size: int) -> "Minibatches":
        """The same images without tasks."""
        return Minibatches(self.images, size, self.variants)


@dataclass(frozen=True)
class Minibatches:
    """Images of all classes with labels that stay the same from batch to batch: "tasks" without a support."""

    images: Tensor  # [classes * variants, per_class, C, H, W] uint8
    size: int
    variants: int = 1

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", tuple(self.images.shape[2:]), len(self.images) // self.variants)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """query.x [T, size, C, H, W] in 0..1, query.y [T, size] of all classes; the support has no examples."""
        rows, per_class = self.images.shape[:2]
        draw = torch.randint(rows * per_class, (num_tasks, self.size), generator=generator, device=generator.device)
        draw = draw.to(self.images.device)
        x, y = self.images.flatten(0, 1)[draw].float() / 255, draw // (per_class * self.variants)
        return Episode(support=Examples(x[:, :0], y[:, :0]), query=Examples(x, y))


@dataclass(frozen=True)
class FixedEpisodes:
    """A list of published tasks, in its order; it leaves nothing to chance."""

    tasks: Episode  # with a leading T
    shape: TaskShape

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", tuple(self.tasks.support.x.shape[2:]), self.shape.ways)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """The first `num_tasks`, or all where there are fewer."""
        return Episode(*(Examples(x[:num_tasks], y[:num_tasks]) for x, y in self.tasks))


def distinct(n: int, k: int, batch: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """[*batch, k] indices below n in random order, no repeats within a row."""
    return torch.rand(*batch, n, generator=generator, device=generator.device).argsort(-1)[..., :k]
