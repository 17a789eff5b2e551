"""How an example becomes a network's input: facts that a checkpoint keeps, so that a model needs no dataset."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metarun.config.errors import ConfigError
from metarun.config.registry import build
from metarun.config.words import count, make_inert
from metarun.core.threads import share_among_threads
from metarun.core.types import Checking, Encoder
from metarun.datasets.sampling.augment import PictureTransform
from metarun.datasets.storage.arrays import load_features
from metarun.datasets.storage.given import find_given, read_points, read_texts
from metarun.datasets.storage.ngrams import Bag
from metarun.datasets.storage.packing import Form, convert, convert_all

Items = Tensor | NDArray[Any] | Sequence[Any]  # inputs of a model: rows of one array, or one item each
Key = TypeVar("Key")


class Named(NamedTuple):
    """Inputs as files hold them."""

    names: list[str]  # of the files
    items: Items
    labels: list[Any]  # None for an input that has none
    empty: Sequence[str] = ()  # class folders that hold none
    notes: Sequence[str] = ()  # what else is in the files, and not read


class Preprocessing(Protocol):
    """From inputs as a person has them to a network's inputs [n, *input_shape]."""

    def read(self, path: Path) -> Named:
        """Read a file, a folder or an archive. Raises ConfigError if there are no inputs, or one cannot be used."""
        ...

    def __call__(self, items: Items) -> Tensor:
        """Raises ConfigError for anything that cannot be an input."""
        ...


@dataclass(frozen=True)
class Pictures:
    """Pictures [C, S, S]: values 0..255 as uint8, or floating-point numbers as the network reads them."""

    size: int
    channels: int
    resize: Literal["squeeze", "crop"]  # of another size: the whole picture, or the largest square in its middle
    filter: str  # of the resizing, by Pillow's name
    ink: int | None = None  # the value of the strokes in a drawing; None: no drawings
    mean: Sequence[float] | None = None  # of each channel, subtracted from values in 0..1
    std: Sequence[float] | None = None  # divided by
    kind: ClassVar[str] = "pictures"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

    def read(self, path: Path) -> Named:
        """Pictures of any size and format, with the names of their class folders or the labels of `labels.csv`."""
        found = find_given(path)
        pixels = dict(self._take(convert_all(found.labels, self._form)))
        names = [picture.name if picture.place in (path, path.parent) else str(picture) for picture in found.labels]
        labels = [label and make_inert(label) for label in found.labels.values()]
        items = torch.stack([pixels[picture] for picture in found.labels])
        return Named(list(map(make_inert, names)), items, labels, found.empty, found.notes)

    def __call__(self, items: Items) -> Tensor:
        """items: an array; or for each picture an array of its own, a file's name, or what Pillow has opened."""
        if isinstance(items, Sequence) and items and all(isinstance(item, str | Path | Image.Image) for item in items):
            items = [self._open(item) for item in items]
        x = stack(items)
        if x.is_floating_point():
            return x
        if x.dtype != torch.uint8 or x.dim() != 4:
            raise ConfigError(
                f"pictures are {str(x.dtype).removeprefix('torch.')} {list(x.shape)}: give uint8 values 0..255, or "
                f"floating-point numbers as the network reads them, [n, {self.channels}, {self.size}, {self.size}]"
            )
        return PictureTransform(mean=self.mean, std=self.std)(x, torch.Generator())

    @property
    def _form(self) -> Form:
        return Form(self.size, self.channels, self.resize, self.filter)

    def _open(self, item: str | Path | Image.Image) -> Tensor:
        """The pixels of a file, or of what Pillow has opened: [C, S, S]. Raises ConfigError."""
        try:
            content = item if isinstance(item, Image.Image) else Path(item).read_bytes()
        except OSError as error:
            raise ConfigError(f"the picture {item} cannot be read ({error.strerror})") from error
        [(_, pixels)] = self._take([(item, convert(content, self._form))])
        return pixels

    def _take(self, results: Iterable[tuple[Key, bytes | str]]) -> list[tuple[Key, Tensor]]:
        """The pixels [C, S, S] of each picture, with strokes in their ink. Raises ConfigError if one is a reason."""
        shape, taken, reasons = (self.channels, self.size, self.size), [], []
        for key, result in results:
            if isinstance(result, str):
                reasons.append(f"{key}: {result}")
            else:
                taken.append((key, self._ink(torch.frombuffer(bytearray(result), dtype=torch.uint8).view(shape))))
        if reasons:
            number, examples = count(len(reasons), "picture"), "; ".join(reasons[:3])
            raise ConfigError(f"{number} cannot be used, for example {examples}: put in whole ones, or take them out")
        return taken

    def _ink(self, pixels: Tensor) -> Tensor:
        """A drawing in the colours of training, whether its strokes are dark or light: most of it is paper."""
        strokes = 0 if pixels.median() > 127 else 1
        return pixels if self.ink in (None, strokes) else 255 - pixels


def from_network(form: Pictures, x: Tensor) -> Tensor:
    """Values in 0..1 of a network's inputs [n, C, S, S]; what else there is in further channels is left out."""
    x = x[:, : form.channels]
    return x if form.std is None else x * by_channel(form.std, x) + by_channel(form.mean or [0.0], x)


def to_network(form: Pictures, pixels: Tensor) -> Tensor:
    """The reverse."""
    if form.std is None:
        return pixels
    return (pixels - by_channel(form.mean or [0.0], pixels)) / by_channel(form.std, pixels)


def by_channel(values: Sequence[float], x: Tensor) -> Tensor:
    """[C, 1, 1]."""
    return torch.tensor(list(values), dtype=x.dtype, device=x.device).view(-1, 1, 1)


@dataclass(frozen=True)
class Strings:
    """Texts or SMILES strings as rows of n-grams; rows that were made before are taken as they are."""

    words: bool
    characters: Sequence[int]
    width: int
    measured: bool = False  # labels are numbers, as in regression
    kind: ClassVar[str] = "strings"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, **asdict(self)}

    def read(self, path: Path, check: Callable[[str], None] = lambda text: None) -> Named:
        """The rows of a table; a row is named by its text. check: raises ConfigError for one that cannot be used."""
        rows = read_texts(path, self.measured, check)
        texts = [text for text, _ in rows]
        return Named(texts, texts, [label for _, label in rows])

    def __call__(self, items: Items) -> Tensor:
        if isinstance(items, Tensor | np.ndarray) or not all(isinstance(item, str) for item in items):
            return stack(items)
        return torch.from_numpy(Bag(self.characters, self.words, self.width).encode(list(items), "the inputs"))


@dataclass(frozen=True)
class Numbers:
    """Numbers as they are."""

    kind: ClassVar[str] = "numbers"

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind}

    def read(self, path: Path) -> Named:
        """The rows of a table, x [n, columns] and y, named by their x; or, of an npz file, vectors and their labels."""
        if path.suffix.lower() == ".npz":
            features, classes, arrays = load_features(path)
            names = [str(name) for name in arrays.get("files", range(len(features)))]
            return Named(names, features, [None] * len(names) if classes is None else classes.tolist())
        points, labels = map(list, zip(*read_points(path)))
        return Named([" ".join(f"{value:g}" for value in x) for x in points], np.array(points), labels)

    def __call__(self, items: Items) -> Tensor:
        return stack(items).float()


@dataclass(frozen=True)
class Features:
    """An encoder's features of pictures or strings; features that were made before are taken as they are."""

    inputs: Preprocessing  # of pictures or strings
    encoder: Encoder
    kind: ClassVar[str] = "features"

    def read(self, path: Path) -> Named:
        if isinstance(self.inputs, Strings) and isinstance(self.encoder, Checking):
            return self.inputs.read(path, self.encoder.check)
        return self.inputs.read(path)

    def __call__(self, items: Items) -> Tensor:
        if isinstance(items, Tensor | np.ndarray) and items.ndim == 2:
            return stack(items)
        if isinstance(self.inputs, Pictures):
            return share_among_threads(self.encoder.encode, self.inputs(items))
        if isinstance(items, Tensor | np.ndarray) or not all(isinstance(item, str) for item in items):
            raise ConfigError("the inputs are no strings: give texts or SMILES, or features [n, D]")
        return share_among_threads(self.encoder.encode, list(items))


def read_preprocessing(facts: Mapping[str, Any], device: torch.device) -> Preprocessing:
    """Read what `to_json` of one of the classes above has written. Raises ConfigError."""
    kinds: dict[str, type[Pictures] | type[Strings] | type[Numbers]] = {
        kind.kind: kind for kind in (Pictures, Strings, Numbers)
    }
    rest = dict(facts)
    kind = rest.pop("kind", None)
    if kind == Features.kind:
        encoder: Encoder = build("encoder", rest["encoder"], device=device)
        found = json.loads(json.dumps(encoder.identity()))
        if found != rest["identity"]:
            raise ConfigError(
                f"encoder={rest['encoder']['name']} is not what the model was trained with: {found} instead of "
                f"{rest['identity']}"
            )
        return Features(read_preprocessing(rest["inputs"], device), encoder)
    if kind not in kinds:
        raise ConfigError(f"preprocessing.kind is {kind!r}: it must be one of {', '.join(kinds)}")
    try:
        return kinds[kind](**rest)
    except TypeError as error:
        raise ConfigError(f"preprocessing of {kind} has other fields than expected: {error}") from error


def stack(items: Items) -> Tensor:
    """One tensor of all items; arrays are copied. Raises ConfigError if they are no numbers, or differ in shape."""
    if isinstance(items, Tensor):
        return items
    try:
        if not isinstance(items, np.ndarray) and all(isinstance(item, Tensor) for item in items) and len(items):
            return torch.stack(list(items))
        return torch.from_numpy(np.array(items))
    except (ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"the inputs cannot be stacked to one array of numbers: {reason}") from error
