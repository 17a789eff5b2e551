"""Few-shot episodes drawn from a table of examples: whole batches of tasks, without a Python loop over tasks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.words import count
from metarun.core.types import Episode, Examples, Part, TaskShape, TaskSpec
from metarun.datasets.sampling.augment import UNCHANGED, Transform
from metarun.datasets.sampling.table import Table


@dataclass(frozen=True)
class EpisodeSampler:
    """N-way K-shot episodes.

    With `variants=1` each class of the table is a class of its own. With `variants=4` the table's classes 4c..4c+3 are
    the rotations of class c. A task draws N classes and one rotation of each, never two rotations of one class.
    """

    table: Table
    shape: TaskShape
    variants: int = 1
    transform: Transform = UNCHANGED
    split: Part | None = None  # named in messages
    names: Sequence[str] = ()  # of the classes that `draw_classes` numbers; none where they have none
    dirichlet: float | None = None  # alpha of the classes' shares in the queries; None: as many queries of each

    def __post_init__(self) -> None:
        ways, shots, queries = self.shape
        classes, where = len(self.table) // self.variants, self.split or "this split"
        if ways > classes:
            remedy = f", choose ways={classes} or fewer" if classes > 1 else ""
            raise ConfigError(f"ways is {ways}: {where} has {count(classes, 'class')}{remedy}")
        if shots + queries > self.table.least:
            which = "each class" if self.table.least == self.table.most else "the smallest class"
            raise ConfigError(
                f"shots + queries is {shots} + {queries} = {shots + queries}: "
                f"{which} of {where} has {count(self.table.least, 'example')}, and support and query must not share any"
            )
        if self.dirichlet is not None and shots + ways * queries > self.table.least:
            raise ConfigError(
                f"dirichlet is {self.dirichlet}: all {ways} * {queries} queries of a task may be of one class, beside "
                f"{shots} of the support, and the smallest class of {where} has {count(self.table.least, 'example')}"
            )

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", self.table.example_shape, self.shape.ways, self.transform.inputs)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """support.x [T, N*K, *example], query.x [T, N*Q, *example]; labels 0..N-1 in class-draw order."""
        ways, shots, queries = self.shape
        classes = self.draw_classes(num_tasks, generator)
        if self.variants > 1:
            variant = torch.randint(self.variants, classes.shape, generator=generator, device=generator.device)
            classes = classes * self.variants + variant
        if self.dirichlet is not None:
            return self._sample_shares(classes, self.dirichlet, generator)
        members = self._draw_members(classes, shots + queries, generator)  # [T, N, K+Q]

        def part(chosen: Tensor) -> Examples:  # [T, N, k]
            x = self.transform(self.table.take(classes, chosen), generator).flatten(1, 2)
            y = torch.arange(ways, device=x.device)[:, None].expand(chosen.shape)
            return Examples(x, y.flatten(1, 2))

        return Episode(support=part(members[..., :shots]), query=part(members[..., shots:]))

    def _sample_shares(self, classes: Tensor, alpha: float, generator: torch.Generator) -> Episode:
        """The tasks of these classes [T, N], with queries by shares that differ from task to task."""
        ways, shots, queries = self.shape
        members = self._draw_members(classes, shots + ways * queries, generator)
        y = draw_shares(ways, ways * queries, len(classes), alpha, generator).sort(dim=1).values  # [T, N*Q]
        place = torch.arange(y.shape[1], device=y.device) - torch.searchsorted(y, y)  # among those of its class
        rows = torch.arange(len(classes), device=y.device)[:, None]

        def read(of: Tensor, chosen: Tensor, y: Tensor) -> Examples:  # [T, c], [T, c, k], [T, c * k]
            x = self.transform(self.table.take(of, chosen), generator).flatten(1, 2)
            return Examples(x, y.to(x.device))

        labels = torch.arange(ways, device=y.device).repeat_interleave(shots).expand(len(classes), -1)
        support = read(classes, members[..., :shots], labels)
        return Episode(support, read(classes.gather(1, y), members[rows, y, shots + place][..., None], y))

    def draw_classes(self, num_tasks: int, generator: torch.Generator) -> Tensor:
        """[T, N]; of a class with rotations, without which one."""
        return draw_distinct(len(self.table) // self.variants, self.shape.ways, (num_tasks,), generator)

    def _draw_members(self, classes: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """Distinct examples of each class: [*classes.shape, k]."""
        table, shape = self.table, tuple(classes.shape)
        if table.least == table.most:
            return draw_distinct(table.most, k, shape, generator)
        return draw_distinct(table.most, k, shape, generator, below=table.sizes(classes))

    def minibatches(self, size: int) -> "Minibatches":
        """The same examples as batches of `size`, without tasks."""
        return Minibatches(self.table, size, self.variants, self.transform)


@dataclass(frozen=True)
class Minibatches:
    """Examples of all classes as queries of "tasks" without a support; a class has the same label in every batch."""

    table: Table
    size: int
    variants: int = 1
    transform: Transform = UNCHANGED

    @property
    def spec(self) -> TaskSpec:
        classes = len(self.table) // self.variants
        return TaskSpec("classification", self.table.example_shape, classes, self.transform.inputs)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """query.x [T, size, *example], query.y [T, size] of all classes; the support has no examples."""
        size = (num_tasks, self.size)
        index = torch.randint(self.table.total, size, generator=generator, device=generator.device)
        examples, classes = self.table.at(index)
        x, y = self.transform(examples, generator), classes // self.variants
        return Episode(support=Examples(x[:, :0], y[:, :0]), query=Examples(x, y))


@dataclass(frozen=True)
class FixedEpisodes:
    """A list of published tasks, in its order; nothing is random."""

    tasks: Episode  # with a leading T
    shape: TaskShape

    @property
    def spec(self) -> TaskSpec:
        shape, listed = tuple(self.tasks.support.x.shape[2:]), len(self.tasks.query.y)
        return TaskSpec("classification", shape, self.shape.ways, listed=listed)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """The first `num_tasks`, or all where there are fewer."""
        return Episode(*(Examples(x[:num_tasks], y[:num_tasks]) for x, y in self.tasks))


def draw_shares(ways: int, size: int, num_tasks: int, alpha: float, generator: torch.Generator) -> Tensor:
    """Draw labels below `ways` by shares that are drawn for each task from Dirichlet(alpha, ..., alpha): [T, size].

    Each label is drawn given those before it (Pólya's urn): one of class k with the weight alpha + how many there are.
    Veilleux et al. 2021, https://arxiv.org/abs/2204.11181, section 3, whose code rounds `size` times the shares.
    """
    counts = torch.full((num_tasks, ways), alpha, dtype=torch.float64, device=generator.device)
    labels = torch.zeros(num_tasks, size, dtype=torch.long, device=generator.device)
    chance = torch.rand(num_tasks, size, generator=generator, dtype=torch.float64, device=generator.device)
    for i in range(size):
        ends = counts.cumsum(1)  # of each class's part of the line from 0 to the sum of the weights
        below = ends[:, :-1] <= chance[:, i : i + 1] * ends[:, -1:]
        labels[:, i] = below.sum(1)
        counts.scatter_add_(1, labels[:, i : i + 1], torch.ones_like(counts[:, :1]))
    return labels


def draw_distinct(
    n: int, k: int, batch: tuple[int, ...], generator: torch.Generator, below: Tensor | None = None
) -> Tensor:
    """Draw k distinct indices below n, in random order, for each row of the batch: [*batch, k].

    below: [*batch], at most n and at least k: a bound of each row's own.
    """
    keys = torch.rand(*batch, n, generator=generator, device=generator.device)
    if below is not None:
        keys = keys.masked_fill(torch.arange(n, device=keys.device) >= below[..., None], 2)
    return keys.topk(k, largest=False).indices
