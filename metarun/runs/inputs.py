"""What a user gives to a trained model, read in the form of its network: inputs, labels, files."""

from collections.abc import Hashable, Mapping, Sequence, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.words import count, make_inert
from metarun.core.types import Examples, TaskSpec
from metarun.datasets.preprocessing import Items, Named, Preprocessing
from metarun.datasets.storage.tree import group

Label = Hashable
Labels = Tensor | NDArray[Any] | Sequence[Any]
Given = Items | Named | str | Path  # a path is read as `Model.read` does
Labelled = tuple[Items, Labels] | Mapping[Any, Items]
Support = Labelled | Named | str | Path


@dataclass(frozen=True, eq=False)
class Reader:
    """Reads inputs for a network of tasks of this form. All methods raise ConfigError for what cannot be read."""

    preprocessing: Preprocessing
    spec: TaskSpec
    device: torch.device
    dtype: torch.dtype  # of inputs that are numbers

    def name(self, x: Given) -> Named:
        """The inputs of files, or those given, named by their numbers; see `Model.read`."""
        if isinstance(x, Named):
            return x
        if isinstance(x, str) and not x:
            raise ConfigError(
                "the inputs are an empty path, as of an unset variable of the shell: name a file or folder"
            )
        if isinstance(x, str | Path):
            return self.preprocessing.read(Path(x))
        if not hasattr(x, "__len__"):
            raise ConfigError(f"the inputs are {_describe(x)}: give an array, a sequence of items or a path")
        return Named([str(item) if isinstance(item, Path) else str(i) for i, item in enumerate(x)], x, [None] * len(x))

    def read(self, items: Items) -> Tensor:
        """Inputs [n, *input] on the device."""
        x, wanted = self.preprocessing(items), self.spec.input_shape
        if tuple(x.shape[1:]) != wanted or len(x) == 0:
            raise ConfigError(
                f"the inputs have shape {list(x.shape)}: this model reads [n, {', '.join(map(str, wanted))}]"
            )
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ConfigError("the inputs hold numbers that are not finite (nan or infinity): take them out")
        return x.to(self.device, self.dtype if x.is_floating_point() else x.dtype)

    def open_support(self, support: Support) -> Labelled:
        """The labelled inputs of a support in any of its forms; see `Model.adapt`."""
        given = self._sort(self.name(support)) if isinstance(support, Named | str | Path) else support
        if not isinstance(given, Mapping) and not (isinstance(given, Sequence) and len(given) == 2):
            raise ConfigError(
                f"the support is {_describe(given)}: "
                "give inputs and labels (x, y), a mapping {class: inputs} or a path"
            )
        return given

    def read_points(self, support: Labelled) -> Examples:
        """The points of a regression, x [n, *input] and y [n, *output]."""
        if isinstance(support, Mapping):
            raise ConfigError("the support is a mapping: in regression it is two arrays (x, y)")
        x, y = self.read(support[0]), self._read_values(support[1])
        _check_lengths(x, y)
        return Examples(x, y)

    def read_classes(self, support: Labelled) -> tuple[list[Label], Tensor, Tensor]:
        """The classes, the inputs [n, *input] and the number of each one's class [n]."""
        if isinstance(support, Mapping):
            parts = [self.read(items) for items in support.values()]
            sizes = torch.tensor([len(part) for part in parts])
            if not parts:
                raise ConfigError("the support has no classes")
            return _check_ways(list(support)), torch.cat(parts), torch.arange(len(parts)).repeat_interleave(sizes)
        x = self.read(support[0])
        _check_lengths(x, support[1])
        labels = support[1].tolist() if isinstance(support[1], Tensor | np.ndarray) else list(support[1])
        classes = _check_ways(_sort(labels))
        number = {label: i for i, label in enumerate(classes)}
        return classes, x, torch.tensor([number[label] for label in labels])

    def _sort(self, support: Named) -> Labelled:
        """The inputs of files by class; in regression with their values."""
        if support.empty:
            raise ConfigError(
                f"{count(len(support.empty), 'class folder')} of the support without a picture, for example "
                f"{make_inert(support.empty[0])}: put some in, or remove it"
            )
        missing = [name for name, label in zip(support.names, support.labels) if label is None]
        if missing:
            raise ConfigError(
                f"{count(len(missing), 'input')} of the support without a label, for example {missing[0]}: "
                "a picture has that of its class folder or of a labels.csv, a row of a table that of its column label"
            )
        if self.spec.kind == "regression":
            return support.items, support.labels
        return dict(sorted(group(zip(support.items, support.labels)).items()))

    def _read_values(self, y: Labels) -> Tensor:
        """Values [n, *output] of a regression."""
        values = torch.as_tensor(np.array(y) if not isinstance(y, Tensor) else y, dtype=torch.float32)
        values = values[:, None] if values.dim() == 1 else values
        if values.shape[1:] != (self.spec.output_size,):
            raise ConfigError(
                f"the values have shape {list(values.shape)}: this model has [n, {self.spec.output_size}]"
            )
        return values.to(self.device)


def _sort(labels: Sequence[Any]) -> list[Label]:
    """The distinct labels, sorted if they can be compared."""
    distinct = list(dict.fromkeys(labels))
    try:
        return sorted(distinct)
    except TypeError:
        return distinct


def _check_ways(classes: list[Label]) -> list[Label]:
    if len(classes) < 2:
        raise ConfigError(f"the support has only the class {classes[0]}: give at least 2, with one any guess is right")
    return classes


def _describe(given: object) -> str:
    """The kind of something that cannot be read, with its length: "a list of 1"."""
    size = f" of {len(given)}" if isinstance(given, Sequence) else ""
    return f"{given!r}" if given is None else f"a {type(given).__name__}{size}"


def _check_lengths(x: Tensor, y: Any) -> None:
    if not isinstance(y, Sized) or getattr(y, "ndim", 1) == 0:
        raise ConfigError(f"the labels are {_describe(y)}: give one for each input")
    if len(x) != len(y):
        raise ConfigError(f"the support has {len(x)} inputs and {len(y)} labels")
