"""Tasks in an order, for methods that read one example after another. The order is drawn with the task, as data."""

from dataclasses import dataclass

import torch

from metarun.config.errors import ConfigError
from metarun.core.sequences import STRINGS
from metarun.core.types import Episode, Examples, TaskSource, TaskSpec
from metarun.datasets.sampling.episodes import draw_distinct


@dataclass(frozen=True)
class InOrder:
    """Another source's tasks with their examples in random order, drawn by the same generator after the task itself.

    With `mixed`, support and query are shuffled together, and the first examples of the sequence, as many as the
    support has, are the support. Otherwise each is shuffled by itself. With `strings`, the labels of a task are not
    0..N-1 but N distinct strings, drawn for each task; a label is the number whose digits are the string's letters.
    """

    source: TaskSource
    mixed: bool
    strings: bool

    def __post_init__(self) -> None:
        spec = self.source.spec
        if self.strings and spec.metric is not None:
            raise ConfigError(f"algo.labels is strings: tasks that are judged by {spec.metric} need one_hot")

    @property
    def spec(self) -> TaskSpec:
        spec = self.source.spec
        return spec._replace(output_size=STRINGS, ways=spec.output_size) if self.strings else spec

    def sample(self, num_tasks: int, generator: torch.Generator) -> Episode:
        support, query = self.source.sample(num_tasks, generator)
        if self.strings:
            codes = draw_distinct(STRINGS, self.source.spec.output_size, (len(query.y),), generator).to(query.y.device)
            support, query = (Examples(x, codes.gather(1, y)) for x, y in (support, query))
        if not self.mixed:
            return Episode(shuffle(support, generator), shuffle(query, generator))
        size = support.y.shape[1]
        x, y = shuffle(Examples(*(torch.cat(fields, 1) for fields in zip(support, query))), generator)
        return Episode(Examples(x[:, :size], y[:, :size]), Examples(x[:, size:], y[:, size:]))


def shuffle(examples: Examples, generator: torch.Generator) -> Examples:
    """Put the examples [T, n, ...] of each task in a random order of its own.

    Examples of one class keep their order, which is random already. So the k-th example of a class stays the same, and
    tasks that differ only in order can be recognised as equal.
    """
    x, y = examples
    tasks, n = y.shape
    labels = y.gather(1, draw_distinct(n, n, (tasks,), generator).to(y.device))
    order = torch.zeros_like(y).scatter(1, labels.argsort(dim=1, stable=True), y.argsort(dim=1, stable=True))
    return Examples(x[torch.arange(tasks, device=y.device)[:, None], order], labels)
