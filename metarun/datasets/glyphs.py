"""Glyphs: generated characters that look hand-drawn, so that the first run needs no download.

A class is a character: a few smooth strokes. Drawings of it differ, as in Omniglot, in how the strokes are bent, in
size, slant, rotation and position, and in the pen. The same settings give the same bytes (another kind of CPU may
round a pixel differently).
"""

import hashlib
import json
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from metarun.config.registry import register
from metarun.config.schema import Count, NonNegative, Seed
from metarun.config.traits import DatasetTraits
from metarun.config.words import count
from metarun.core.files import open_bytes
from metarun.core.threads import use_one_thread
from metarun.core.types import Part, Split, TaskShape
from metarun.datasets.preprocessing import Pictures
from metarun.datasets.sampling.episodes import EpisodeSampler, draw_distinct
from metarun.datasets.sampling.table import Table
from metarun.datasets.storage.cache import cache_dir, ensure

VERSION = 1  # of the code below: raise it when the same settings give other images

# Units: a character fills the square -1..1, and so does an image, in which the pen is measured.
STROKES = (2, 4)  # least and most in a character
BEND = 0.6  # standard deviation of a stroke's inner control points from the straight line
SIZE = 0.6  # of a character in its image
PEN = (0.05, 0.08)  # thinnest and thickest radius
NODES = torch.cartesian_prod(torch.arange(-1.0, 2.0), torch.arange(-1.0, 2.0))  # [9, 2], the ends of strokes


@register("dataset", "glyphs", DatasetTraits(kind="classification", pooled=True, baselines=("pixels",)))
@dataclass(frozen=True)
class Glyphs:
    """Generated characters; no class is in two splits."""

    classes_train: Count
    classes_val: Count
    classes_test: Count
    drawings: Count
    image_size: Count
    jitter: NonNegative
    warp: NonNegative
    generator_seed: Seed
    device: torch.device

    def prepare(self) -> None:
        """Draw the images if the cache does not have them. Raises ConfigError if it cannot be written."""
        self._ensure_images()

    def tasks(self, split: Part, shape: TaskShape) -> EpisodeSampler:
        """Tasks of images [1, S, S]. Raises ConfigError if the shape asks for more than the split has."""
        start, stop = self._rows[split]
        return EpisodeSampler(Table.from_classes(self._table[start:stop].to(self.device)), shape, split=split)

    def describe(self) -> str:
        size, folder = self.image_size, cache_dir() / self._name
        state = f"kept in {folder}" if folder.is_dir() else f"drawn at first use, in seconds, into {folder}"
        return "\n".join(
            [f"glyphs: characters drawn by metarun, {self.drawings} drawings of each, {size}x{size}; {state}"]
            + [f"  {split}: {count(classes, 'class')}" for split, classes in self._classes.items()]
        )

    def notes(self) -> list[str]:
        """Nothing: no class is in two splits."""
        return []

    def identity(self) -> dict[str, Any]:
        """The settings, the classes of each split, and a hash of the images."""
        return {
            "name": "glyphs",
            "version": VERSION,
            "settings": self._settings,
            "classes": self._classes,
            "sha256": hashlib.sha256(self._table.numpy().tobytes()).hexdigest(),
        }

    def preprocessing(self) -> dict[str, Any]:
        """Grey drawings with strokes of value 1."""
        return Pictures(self.image_size, channels=1, resize="squeeze", filter="lanczos", ink=1).to_json()

    @property
    def _settings(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != "device"}

    @property
    def _classes(self) -> dict[Split, int]:
        return {"train": self.classes_train, "val": self.classes_val, "test": self.classes_test}

    @property
    def _rows(self) -> dict[Part, tuple[int, int]]:
        """First row and end of each split. Test comes first, so that `classes_train` does not change it."""
        test, val = self.classes_test, self.classes_test + self.classes_val
        end = val + self.classes_train
        return {"test": (0, test), "val": (test, val), "train": (val, end), "all": (0, end)}

    @property
    def _name(self) -> str:
        key = json.dumps([VERSION, self._settings], sort_keys=True)
        return f"glyphs-{hashlib.sha256(key.encode()).hexdigest()[:16]}"

    def _ensure_images(self) -> Path:
        """The folder of images.pt, in the cache."""
        return ensure(self._name, self._write)

    def _write(self, folder: Path) -> None:
        with open_bytes(folder / "images.pt") as content:  # PyTorch aborts the process if the disk is full
            torch.save(self._draw(), content)

    @cached_property
    def _table(self) -> Tensor:
        """[classes, drawings, 1, S, S] uint8, on the CPU."""
        images: Tensor = torch.load(self._ensure_images() / "images.pt", weights_only=True)
        return images

    @use_one_thread()
    def _draw(self) -> Tensor:
        """Draw the table class by class, which bounds the memory; a class takes milliseconds."""
        generator = torch.Generator().manual_seed(self.generator_seed)
        classes = sum(self._classes.values())
        table = torch.empty(classes, self.drawings, 1, self.image_size, self.image_size, dtype=torch.uint8)
        for row in tqdm(table, desc="drawing glyphs", unit="class", leave=False, disable=None):
            strokes = draw_character(generator)
            drawings = redraw(strokes, self.drawings, self.jitter, self.warp, generator)
            row[:, 0] = rasterise(drawings, self.image_size, generator)
        return table


def draw_character(generator: torch.Generator) -> Tensor:
    """Draw a new character: the control points [strokes, 4, 2] of its cubic Bezier curves, filling -1..1.

    Strokes run between nodes of a grid, so that they meet and none is tiny.
    """
    fewest, most = STROKES
    number = int(torch.randint(fewest, most + 1, (), generator=generator))
    start, stop = NODES[draw_distinct(len(NODES), 2, (number,), generator)].unbind(1)  # [strokes, 2] each
    strokes = torch.stack([start, start.lerp(stop, 1 / 3), start.lerp(stop, 2 / 3), stop], dim=1)
    strokes[:, 1:3] += BEND * torch.randn(number, 2, 2, generator=generator)
    left_top, right_bottom = trace_bezier(strokes, 64).flatten(0, 1).aminmax(dim=0)  # [2] each
    return (strokes - (left_top + right_bottom) / 2) * 2 / (right_bottom - left_top).amax()


def redraw(strokes: Tensor, times: int, jitter: float, warp: float, generator: torch.Generator) -> Tensor:
    """Draw the character [strokes, 4, 2] several times: [times, strokes, 4, 2].

    Control points deviate by `jitter`. Then a random affine map, whose six numbers deviate by `warp` from those of the
    identity, rotates, slants, scales and shifts the whole.
    """
    bent = strokes + jitter * torch.randn(times, *strokes.shape, generator=generator)
    affine = torch.eye(3, 2) + warp * torch.randn(times, 3, 2, generator=generator)  # last row: the shift
    return bent @ affine[:, None, :2] + affine[:, None, 2:]


def rasterise(strokes: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """strokes [n, strokes, 4, 2] -> images [n, size, size] uint8, ink 255 on 0, each with its own pen."""
    curve = SIZE * trace_bezier(strokes, 2 * size).flatten(1, 2)  # [n, P, 2]
    thin, thick = PEN
    pen = thin + (thick - thin) * torch.rand(len(strokes), 1, 1, generator=generator)
    centres = (torch.arange(size) + 0.5) / size * 2 - 1  # of the pixels, along each axis
    across, down = (centres[:, None, None] - curve[:, None]).square().unbind(-1)  # [n, size, P] each
    distance = (across[:, None, :] + down[:, :, None]).amin(-1).sqrt()  # [n, size, size] to the nearest point
    ink = ((pen - distance) * size / 2 + 0.5).clamp(0, 1)  # fades over one pixel: anti-aliased
    return (255 * ink).round().to(torch.uint8)


def trace_bezier(control: Tensor, points: int) -> Tensor:
    """control [..., 4, 2] -> `points` points on each cubic curve: [..., points, 2]."""
    t = torch.linspace(0, 1, points)
    s = 1 - t
    return torch.stack([s**3, 3 * s**2 * t, 3 * s * t**2, t**3], dim=-1) @ control
