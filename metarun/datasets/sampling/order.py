"""Tasks in an order: for methods that read one example after another. The order is drawn with the task, as data."""

from dataclasses import dataclass

import torch

from metarun.config.errors import ConfigError
from metarun.core.sequences import STRINGS
from metarun.core.types import Episode, Examples, TaskSource, TaskSpec
from metarun.datasets.sampling.episodes import distinct


@dataclass(frozen=True)
class InOrder:
    """Another source's tasks, their examples in random order: drawn by the same generator, after the task itself.

    With `mixed` any example comes at any time; what comes first counts as the support, as many as the support has.
    Else support and queries are put in order apart. With `strings` a task's labels are not 0..N-1 but N of all
    strings, drawn anew for each task, each as the number whose digits are its letters.
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
            codes = distinct(STRINGS, self.source.spec.output_size, (len(query.y),), generator).to(query.y.device)
            support, query = (Examples(x, codes.gather(1, y)) for x, y in (support, query))
        if not self.mixed:
            return Episode(shuffled(support, generator), shuffled(query, generator))
        size = support.y.shape[1]
        x, y = shuffled(Examples(*(torch.cat(fields, 1) for fields in zip(support, query))), generator)
        return Episode(Examples(x[:, :size], y[:, :size]), Examples(x[:, size:], y[:, size:]))


def shuffled(examples: Examples, generator: torch.Generator) -> Examples:
    """[T, n, ...], each task in an order of its own, in which those of one class keep theirs: that is random already.

    So the k-th of a class is the same example as before, and tasks that differ in order alone can be told to be equal.
    """
    x, y = examples
    tasks, n = y.shape
    labels = y.gather(1, distinct(n, n, (tasks,), generator).to(y.device))
    order = torch.zeros_like(y).scatter(1, labels.argsort(dim=1, stable=True), y.argsort(dim=1, stable=True))
    return Examples(x[torch.arange(tasks, device=y.device)[:, None], order], labels)
