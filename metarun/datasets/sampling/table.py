"""Examples by class: in the device's memory, in the host's, or on disk, and the same to whoever draws from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.core.machine import free_memory

Placement = Literal["auto", "device", "host", "disk"]
SHARE = 0.5  # of the memory that is free: what pictures may take of it when metarun chooses


@dataclass(frozen=True)
class Table:
    """Rows of examples, as pictures, and which of them make up each class."""

    examples: Tensor  # [n, *example], of pictures [n, C, H, W] uint8
    rows: Tensor  # [m] of examples, those of a class next to each other
    starts: Tensor  # [classes], of each class in `rows`
    counts: Tensor  # [classes]
    device: torch.device  # where examples are wanted
    least: int  # examples of the smallest class
    most: int
    turned: bool = False  # each class is four: its pictures turned by 0, 90, 180 and 270 degrees

    @classmethod
    def of(cls, examples: Tensor, labels: Tensor, rows: Tensor, device: torch.device) -> "Table":
        """examples: [n, *example]; labels: [m] of their `rows` [m], 0 .. classes - 1, each at least once."""
        counts = labels.bincount()
        rows, starts = rows[labels.argsort(stable=True)], counts.cumsum(0) - counts
        rows, starts, counts = (part.to(device) for part in (rows, starts, counts))
        return cls(examples, rows, starts, counts, device, int(counts.min()), int(counts.max()))

    @classmethod
    def even(cls, examples: Tensor) -> "Table":
        """examples: [classes, per_class, *example]."""
        classes, per_class = examples.shape[:2]
        labels = torch.arange(classes).repeat_interleave(per_class)
        return cls.of(examples.flatten(0, 1), labels, torch.arange(len(labels)), examples.device)

    def __len__(self) -> int:
        return len(self.counts) * (4 if self.turned else 1)

    @property
    def total(self) -> int:
        """Examples, each as often as it is turned."""
        return len(self.rows) * (4 if self.turned else 1)

    @property
    def example_shape(self) -> tuple[int, ...]:
        return tuple(self.examples.shape[1:])

    def sizes(self, classes: Tensor) -> Tensor:
        """How many examples each of `classes` has, on their device."""
        return self.counts.to(classes.device)[classes // (4 if self.turned else 1)]

    def take(self, classes: Tensor, members: Tensor) -> Tensor:
        """The examples `members` [*s, k] of `classes` [*s]: [*s, k, *example], as stored, on the device."""
        classes, members = classes.to(self.device), members.to(self.device)
        if not self.turned:
            return self._fetched(self.starts[classes][..., None] + members)
        upright = self._fetched(self.starts[classes // 4][..., None] + members)
        return turned(upright, (classes % 4)[..., None].expand(members.shape))

    def at(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """The examples of a list [total] of all classes' [*s], and their classes [*s], on the device."""
        index = index.to(self.device)
        turns = 4 if self.turned else 1
        examples = self._fetched(index // turns)
        classes = torch.bucketize(index // turns, self.starts, right=True) - 1
        if self.turned:
            examples = turned(examples, index % 4)
        return examples, classes * turns + index % turns

    def _fetched(self, index: Tensor) -> Tensor:
        rows = self.rows[index.flatten()].to(self.examples.device)
        x = self.examples.index_select(0, rows).unflatten(0, index.shape)
        if x.device != self.device and self.device.type == "cuda":
            x = x.pin_memory()
        return x.to(self.device, non_blocking=True)


def turned(x: Tensor, quarters: Tensor) -> Tensor:
    """x: [*s, C, S, S], each picture turned by so many quarters [*s] against the clock."""
    quarters = quarters[..., None, None, None]
    x = torch.where(quarters >= 2, x.flip(-2, -1), x)
    return torch.where(quarters % 2 == 1, x.rot90(1, (-2, -1)), x)


def placed(pictures: Tensor, rows: Tensor, placement: Placement, device: torch.device) -> tuple[Tensor, Tensor]:
    """The mapped pictures where the setting says, and which of what is there the rows are: all, or the same.

    `auto` puts them on a GPU where they take at most half of its free memory, else in the host's where they take at
    most half of that, else leaves them on disk; on a CPU it leaves them there, since the system keeps what is used in
    memory, once for all processes. Raises ConfigError where they do not fit.
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


def span(sizes: Sequence[int]) -> str:
    """For a person: the least and the most of some sizes."""
    least, most = min(sizes), max(sizes)
    return f"{least}" if least == most else f"{least} to {most}"
