"""A picture of a dataset's tasks: one of each split, as a network sees it."""

from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from metarun.config.errors import ConfigError
from metarun.core.files import open_bytes
from metarun.core.seeding import generator_for
from metarun.core.types import Dataset, Episode, Split, TaskShape

EDGE, GAP = 1, 4  # pixels around each image, and between support and queries
MOST_COLUMNS = 8  # of support, and of queries


def draw(dataset: Dataset, shape: TaskShape, file: Path) -> None:
    """Write a PNG of one task per split: a row for each class, with its support on the left and queries on the right.

    Raises ConfigError if inputs are not images, and as `dataset.tasks` does.
    """
    from matplotlib.figure import Figure

    splits: tuple[Split, ...] = ("train", "val", "test")
    sources = {split: dataset.tasks(split, shape) for split in splits}
    for source in sources.values():
        if len(source.spec.input_shape) != 3 or source.spec.input_shape[0] not in (1, 3):
            raise ConfigError(f"--preview shows images: this dataset's inputs have the shape {source.spec.input_shape}")
    figure = Figure(figsize=(15, 5), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, (split, source) in zip(axes, sources.items()):
        task = source.sample(1, generator_for("preview", split))
        axis.imshow(arrange(task, shape.ways), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axis.set_title(f"{split}: support | queries", fontsize=10)
        axis.axis("off")
    with open_bytes(file) as content:
        figure.savefig(content, dpi=150, bbox_inches="tight")


def arrange(task: Episode, ways: int) -> Tensor:
    """Put the images of a single task, [1, N*K, C, H, W], side by side: [H, W] or [H, W, 3] in 0..1."""
    parts = []
    for part in task:
        x = part.x[0].unflatten(0, (ways, -1))[:, :MOST_COLUMNS].float().cpu()  # [N, k, C, H, W]
        x = pad(x, (EDGE,) * 4, value=float(x.max()))
        parts.append(x.permute(2, 0, 3, 1, 4).flatten(3, 4).flatten(1, 2))  # [C, N*H, k*W]
    low, high = (f(torch.stack([f(part) for part in parts])) for f in (torch.min, torch.max))
    gap = torch.full((*parts[0].shape[:2], GAP), float(high))
    whole = (torch.cat([parts[0], gap, parts[1]], dim=-1) - low) / (high - low).clamp(min=1e-8)
    return whole[0] if len(whole) == 1 else whole.permute(1, 2, 0)
