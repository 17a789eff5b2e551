"""Tasks that are a table's groups as a whole, such as the assays that molecules were measured in."""

from dataclasses import dataclass

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.traits import Inputs
from metarun.core.types import Episode, Examples, TaskShape, TaskSpec
from metarun.datasets.sampling.episodes import draw_distinct
from metarun.datasets.sampling.table import Table


@dataclass(frozen=True)
class AssaySampler:
    """Draws assays; of each, support molecules with the assay's own share of active ones, and queries from the rest."""

    table: Table  # its classes are the assays, each with shots + queries molecules or more
    active: Tensor  # [m] bool, of the table's rows
    shape: TaskShape  # `ways` has no meaning
    inputs: Inputs = "ngrams"

    def __post_init__(self) -> None:
        if self.shape.shots < 2:
            raise ConfigError(
                f"shots is {self.shape.shots}: of an assay it counts all molecules of the support, at least 2"
            )

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("classification", self.table.example_shape, 2, self.inputs, metric="delta_auprc")

    def draw_classes(self, num_tasks: int, generator: torch.Generator) -> Tensor:
        """The assay of each task: [T, 1]."""
        return torch.randint(len(self.table), (num_tasks, 1), generator=generator, device=generator.device)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """support.x [T, shots, width], query.x [T, queries, width]; labels 1 where the molecule is active."""
        table, (_, shots, queries) = self.table, self.shape
        assays = self.draw_classes(num_tasks, generator)[:, 0]
        members = draw_distinct(table.most, table.most, (num_tasks,), generator, below=table.sizes(assays))
        assays, members = assays.to(table.device), members.to(table.device)
        sizes, starts = table.counts[assays][:, None], table.starts[assays][:, None]  # [T, 1]
        real = torch.arange(table.most, device=table.device) < sizes  # [T, most]: padding comes last
        active = self.active[torch.where(real, starts + members, 0)] & real
        # Active molecules in the support, at least one of each class; then each molecule's number within its class.
        wanted = (shots * active.sum(1, keepdim=True) / sizes).round().clamp(1, shots - 1)
        nth = torch.where(active, active.cumsum(1), (real & ~active).cumsum(1))  # from 1
        support = real & (nth <= torch.where(active, wanted, shots - wanted))
        order = (~support).to(torch.uint8).argsort(dim=1, stable=True)[:, : shots + queries]
        x, y = table.take(assays, members.gather(1, order)), active.gather(1, order).long()
        return Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:]))


@dataclass(frozen=True)
class ValueSampler:
    """Draws tasks of regression, and of each distinct examples with their values."""

    table: Table  # its classes are the tasks, each with shots + queries examples or more
    values: Tensor  # [m, outputs], of the table's rows
    shape: TaskShape  # `ways` has no meaning
    inputs: Inputs = "numbers"

    @property
    def spec(self) -> TaskSpec:
        return TaskSpec("regression", self.table.example_shape, self.values.shape[1], self.inputs)

    def draw_classes(self, num_tasks: int, generator: torch.Generator) -> Tensor:
        """The number of each task: [T, 1]."""
        return torch.randint(len(self.table), (num_tasks, 1), generator=generator, device=generator.device)

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        """support.x [T, shots, *example] with y [T, shots, outputs], query.x [T, queries, *example] with its y."""
        table, (_, shots, queries) = self.table, self.shape
        tasks = self.draw_classes(num_tasks, generator)[:, 0]
        members = draw_distinct(table.most, shots + queries, (num_tasks,), generator, below=table.sizes(tasks))
        tasks, members = tasks.to(table.device), members.to(table.device)
        x, y = table.take(tasks, members), self.values[table.starts[tasks][:, None] + members]
        return Episode(Examples(x[:, :shots], y[:, :shots]), Examples(x[:, shots:], y[:, shots:]))
