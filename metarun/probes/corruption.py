"""Corrupted pictures, in the manner of Hendrycks and Dietterich 2019, https://arxiv.org/abs/1903.12261.

Their severities are for pictures of 224 pixels; ours are settings, one list for small pictures and one for large ones.
A picture is corrupted as values in 0..1, before it is normalised for the network, and cut to that range afterwards.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from metarun.config.registry import register
from metarun.config.traits import ProbeTraits
from metarun.core.types import Episode, Examples
from metarun.datasets.preprocessing import Pictures, from_network, to_network
from metarun.probes.draw import draw_on
from metarun.probes.probe import Figures, Finding, Subject, compare, estimate, mean_of, require

SMALL = 48  # pixels of a side, up to which a picture is small

Corrupt = Callable[[Tensor, float, torch.Generator], Tensor]  # x [n, C, S, S] in 0..1, severity
Parts = Literal["query", "support", "both"]


@register("probe", "corruption", ProbeTraits(kinds=("classification",), pictures=True))
@dataclass(frozen=True)
class Corruption:
    """Accuracy on corrupted queries, supports or both, relative to that on clean ones, with a preview."""

    parts: list[Literal["query", "support", "both"]]
    small: dict[str, list[float]]
    large: dict[str, list[float]]

    def run(self, subject: Subject) -> Finding:
        form = subject.pictures
        assert form is not None
        tester, severities = subject.build_tester(), self.small if form.size <= SMALL else self.large
        strange = severities.keys() - CORRUPTIONS.keys()
        require(not strange, f"corruption has no {', '.join(sorted(strange))}: choose from {', '.join(CORRUPTIONS)}")
        require(bool(self.parts) and any(severities.values()), "corruption has no parts or no severities: give some")
        clean = subject.score_changed(tester, lambda tasks, generator: tasks)
        table: list[Figures] = []
        found: dict[tuple[str, str, int], Tensor] = {}
        for part in self.parts:
            for name, values in severities.items():
                for severity, value in enumerate(values, start=1):
                    change = partial(corrupt_tasks, CORRUPTIONS[name], value, part, form)
                    scores = found[part, name, severity] = subject.score_changed(tester, change)
                    table.append(
                        {
                            "part": part,
                            "corruption": name,
                            "severity": severity,
                            subject.headline: estimate(scores),
                            "lost": compare(clean, scores),
                            "relative": float(scores.double().mean() / clean.double().mean()),
                        }
                    )
        pictures = from_network(form, subject.draw_tasks(1, tester).support.x[0, :1])
        return Finding(
            table=table,
            score=mean_of(found),
            scored=f"mean {subject.headline} over corruptions and severities",
            draw=partial(draw, table, self.parts[0], subject.headline, pictures, severities),
        )


def corrupt_tasks(
    corrupt: Corrupt, value: float, part: Parts, form: Pictures, tasks: Episode, generator: torch.Generator
) -> Episode:
    """Corrupt the pictures of a part of the tasks."""

    def change(examples: Examples) -> Examples:
        pixels = from_network(form, examples.x.flatten(0, 1))
        changed = to_network(form, corrupt(pixels, value, generator).clamp(0, 1))
        return Examples(changed.view_as(examples.x), examples.y)

    support, query = tasks
    return Episode(
        change(support) if part != "query" else support,
        change(query) if part != "support" else query,
    )


def add_noise(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Add normal noise to every value."""
    return x + deviation * torch.randn(x.shape, generator=generator).to(x)


def blur(x: Tensor, deviation: float, generator: torch.Generator) -> Tensor:
    """Blur by a Gaussian of so many pixels."""
    reach = max(1, math.ceil(3 * deviation))
    weights = torch.exp(-torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device).square() / 2 / deviation**2)
    weights = weights / weights.sum()
    flat = F.pad(x.flatten(0, 1)[:, None], (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(flat, weights.view(1, 1, -1, 1)), weights.view(1, 1, 1, -1)).view_as(x)


def lower_contrast(x: Tensor, factor: float, generator: torch.Generator) -> Tensor:
    """Move every value towards the picture's mean."""
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + factor * (x - mean)


def brighten(x: Tensor, more: float, generator: torch.Generator) -> Tensor:
    """Add a number to every value."""
    return x + more


def pixelate(x: Tensor, pixels: float, generator: torch.Generator) -> Tensor:
    """Keep so many pixels of a side, each as large as several."""
    return F.interpolate(F.adaptive_avg_pool2d(x, round(pixels)), x.shape[-1], mode="nearest")


def occlude(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Set a square to 0 whose side is a share of the picture's, at a random place."""
    side = x.shape[-1]
    square = round(share * side)
    corner = (torch.rand(len(x), 2, generator=generator).to(x.device) * (side - square + 1)).floor()
    place = torch.arange(side, device=x.device)
    inside = (place >= corner[..., None]) & (place < corner[..., None] + square)  # [n, 2, S]
    return x.masked_fill((inside[:, 0, :, None] & inside[:, 1, None])[:, None], 0.0)


def move(x: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Move a picture by a share of its side in a random direction; what comes in is as the edge."""
    angle = 2 * math.pi * torch.rand(len(x), generator=generator)
    return transform(x, torch.zeros(len(x)), 2 * share * torch.stack([angle.cos(), angle.sin()], -1))


def rotate(x: Tensor, degrees: float, generator: torch.Generator) -> Tensor:
    """Rotate a picture about its middle, to either side."""
    sign = torch.randint(2, (len(x),), generator=generator) * 2.0 - 1.0
    return transform(x, sign * math.radians(degrees), torch.zeros(len(x), 2))


def transform(x: Tensor, angle: Tensor, shift: Tensor) -> Tensor:
    """Rotate by [n] radians and move by [n, 2], where 2 is a picture's side."""
    turn = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], -1).view(-1, 2, 2)
    grid = F.affine_grid(torch.cat([turn, shift[..., None]], -1).to(x), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


CORRUPTIONS: dict[str, Corrupt] = {
    "noise": add_noise,
    "blur": blur,
    "contrast": lower_contrast,
    "brightness": brighten,
    "pixelation": pixelate,
    "occlusion": occlude,
    "shift": move,
    "rotation": rotate,
}


def draw(
    table: list[Figures], part: str, value: str, pictures: Tensor, severities: dict[str, list[float]], figure: Any
) -> None:
    """On the left accuracy by severity, on the right a picture under every corruption."""
    figure.set_size_inches(12, 5.5)
    left, right = figure.subplots(1, 2)
    draw_on(left, [row for row in table if row["part"] == part], "corruption", "severity", value)
    left.set_title(f"{part} corrupted")
    left.legend(fontsize="small")
    edge, most, lines = pictures.shape[-1] + 2, max(map(len, severities.values())), []
    for name, values in severities.items():
        changed = [
            CORRUPTIONS[name](pictures, strength, torch.Generator().manual_seed(0)).clamp(0, 1) for strength in values
        ]
        row = torch.cat([F.pad(x[0], (1,) * 4, value=0.5) for x in (pictures, *changed)], -1)
        lines.append(F.pad(row, (0, (1 + most) * edge - row.shape[-1]), value=1.0))
    sheet = torch.cat(lines, -2).cpu()
    right.imshow(sheet.permute(1, 2, 0).squeeze(-1), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    right.set_yticks([edge * (i + 0.5) for i in range(len(severities))], list(severities))
    right.set_xticks([edge * (i + 0.5) for i in range(most + 1)], ["clean", *range(1, most + 1)])
    right.set_xlabel("severity")
