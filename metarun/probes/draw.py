"""Charts that several probes draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from metarun.config.registry import style
from metarun.probes.probe import Figures


def draw_lines(table: Sequence[Figures], group: str | None, across: str, value: str, figure: Any) -> None:
    """Draw one line per `group` over `across`, with intervals."""
    axis = figure.subplots()
    draw_on(axis, table, group, across, value)
    if group is not None:
        axis.legend(fontsize="small")


def draw_on(axis: Any, table: Sequence[Figures], group: str | None, across: str, value: str) -> None:
    """The same on axes that are there."""
    lines: dict[Any, list[Figures]] = {}
    for row in table:
        lines.setdefault(row[group] if group else None, []).append(row)
    scale, named = style(value).scale, any(isinstance(row[across], str) for row in table)
    for name, rows in lines.items():
        means = np.array([row[value].mean for row in rows])
        halves = np.array([row[value].ci95 or 0.0 for row in rows])
        x = [str(row[across]) if named else row[across] for row in rows]
        axis.errorbar(x, scale * means, scale * halves, marker="o", markersize=3, label=name)
    axis.set(xlabel=across, ylabel=name_axis(value))
    axis.grid(alpha=0.3)


def name_axis(value: str) -> str:
    """A figure's name with its unit."""
    return ", ".join(filter(None, (value, style(value).unit)))


def draw_heat(axis: Any, cells: Mapping[tuple[Any, Any], float], names: tuple[str, str], scale: float = 1.0) -> Any:
    """Draw a map of numbers by (line, column), with the numbers in it; what is missing stays empty."""
    lines, columns = (list(dict.fromkeys(key[i] for key in cells)) for i in range(2))
    values = [[scale * cells.get((line, column), float("nan")) for column in columns] for line in lines]
    image = axis.imshow(values, aspect="auto", cmap="viridis")
    for i, line in enumerate(values):
        for j, value in enumerate(line):
            if value == value:
                dark = image.norm(value) < 0.6
                axis.text(j, i, f"{value:.3g}", ha="center", va="center", color="white" if dark else "black")
    axis.set(xlabel=names[1], ylabel=names[0])
    axis.set_xticks(range(len(columns)), [str(column) for column in columns])
    axis.set_yticks(range(len(lines)), [str(line) for line in lines])
    return image
