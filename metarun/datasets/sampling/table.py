"""Examples by class, kept in the device's memory, in the host's, or on disk: those who draw see no difference."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.core.machine import free_memory

Placement = Literal["auto", "device", "host", "disk"]
SHARE = 0.5  # of the free memory: as much as `auto` takes for pictures


@dataclass(frozen=True)
class Table:
    """Rows of examples, for instance pictures, and the rows that belong to each class."""

    examples: Tensor  # [n, *example]; of pictures [n, C, H, W] uint8
    rows: Tensor  # [m] of examples, those of a class next to each other; where the examples are, as the next two
    starts: Tensor  # [classes], of each class in `rows`
    counts: Tensor  # [classes]
    device: torch.device  # where examples are wanted
    least: int  # examples of the smallest class
    most: int  # examples of the largest class
    counted: Tensor  # counts on the host, where a test's tasks are drawn
    rotated: bool = False  # class 4c + q of the table is class c rotated by q quarter turns

    @classmethod
    def from_labels(cls, examples: Tensor, labels: Tensor, rows: Tensor, device: torch.device) -> "Table":
        """examples: [n, *example]; labels: [m] of their `rows` [m], 0 .. classes - 1, each at least once."""
        counted = labels.bincount()
        least, most = int(counted.min()), int(counted.max())
        rows, starts = rows[labels.argsort(stable=True)], counted.cumsum(0) - counted
        rows, starts, counts = (part.to(examples.device) for part in (rows, starts, counted))
        return cls(examples, rows, starts, counts, device, least, most, counted)

    @classmethod
    def from_classes(cls, examples: Tensor) -> "Table":
        """examples: [classes, per_class, *example]."""
        classes, per_class = examples.shape[:2]
        labels = torch.arange(classes).repeat_interleave(per_class)
        return cls.from_labels(examples.flatten(0, 1), labels, torch.arange(len(labels)), examples.device)

    def __len__(self) -> int:
        return len(self.counts) * self._turns

    @property
    def total(self) -> int:
        """The number of examples, with each rotation counted."""
        return len(self.rows) * self._turns

    @property
    def example_shape(self) -> tuple[int, ...]:
        return tuple(self.examples.shape[1:])

    def sizes(self, classes: Tensor) -> Tensor:
        """The number of examples of each of `classes`, on their device."""
        counts = self.counts if classes.device == self.counts.device else self.counted
        return counts[classes // self._turns]

    def take(self, classes: Tensor, members: Tensor) -> Tensor:
        """The examples `members` [*s, k] of `classes` [*s]: [*s, k, *example], as stored, on the device."""
        classes, members = classes.to(self.starts.device), members.to(self.starts.device)
        if not self.rotated:
            return self._fetch(self.starts[classes][..., None] + members)
        upright = self._fetch(self.starts[classes // 4][..., None] + members)
        return rotate(upright, (classes % 4).to(self.device)[..., None].expand(members.shape))

    def at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The examples `index` [*s] in a list of all classes' [total], and their classes [*s], on the device."""
        index, turns = index.to(self.starts.device), self._turns
        examples = self._fetch(index // turns)
        classes = torch.bucketize(index // turns, self.starts, right=True) - 1
        if self.rotated:
            examples = rotate(examples, (index % 4).to(self.device))
        return examples, (classes * turns + index % turns).to(self.device)

    @property
    def _turns(self) -> int:
        return 4 if self.rotated else 1

    def _fetch(self, index: Tensor) -> Tensor:
        x = self.examples.index_select(0, self.rows[index.flatten()]).view(*index.shape, *self.example_shape)
        if x.device.type == "cpu" and self.device.type == "cuda":
            return x.pin_memory().to(self.device, non_blocking=True)
        return x.to(self.device)


def rotate(x: Tensor, quarters: Tensor) -> Tensor:
    """Rotate each picture of x [*s, C, S, S] counter-clockwise by `quarters` [*s] quarter turns, each 0..3."""
    quarters = quarters[..., None, None, None]
    x = torch.where(quarters >= 2, x.flip(-2, -1), x)
    return torch.where(quarters % 2 == 1, x.rot90(1, (-2, -1)), x)


def place(pictures: Tensor, rows: Tensor, placement: Placement, device: torch.device) -> tuple[Tensor, Tensor]:
    """Copy the chosen rows of mapped pictures to `placement`. Returns the pictures and the rows' numbers among them.

    `disk` copies nothing. `auto` chooses, for a GPU, the first that fits: the device if the rows take at most half of
    its free memory, the host by the same rule, the disk. For a CPU it chooses the disk: the system caches what is used,
    once for all processes. Raises ConfigError if the rows do not fit.
    """
    size = len(rows) * pictures[0].numel()
    if placement == "auto":
        placement = "disk"
        if device.type != "cpu" and size <= SHARE * free_memory(device):
            placement = "device"
        elif device.type != "cpu" and size <= SHARE * free_memory(torch.device("cpu")):
            placement = "host"
    if placement == "disk":
        return pictures, rows
    where = device if placement == "device" else torch.device("cpu")
    if size > free_memory(where):
        others = ", ".join(name for name in get_args(Placement) if name != placement)
        raise ConfigError(
            f"dataset.placement is {placement}: the pictures take {size / 2**30:.1f} GiB, "
            f"and {free_memory(where) / 2**30:.1f} GiB are free: choose from {others}"
        )
    return pictures[rows].to(where), torch.arange(len(rows))


def format_range(sizes: Sequence[int]) -> str:
    """The least and the most of some sizes: "20", or "12 to 20"."""
    least, most = min(sizes), max(sizes)
    return f"{least}" if least == most else f"{least} to {most}"
