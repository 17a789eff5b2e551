"""Learning curves and distributions as SVG, in the colours of the page around them."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from metarun.reports.markup import Markup, el

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 360, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 334, 10, 184  # of the curves' frame
BAR_WIDTH, BAR_HEIGHT = 240, 36
BARS = 40
MOST = 100  # points of a curve; of more every second, third, ...


@dataclass(frozen=True)
class Scale:
    """A range of values, laid out from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, values: np.ndarray | Sequence[float]) -> np.ndarray:
        ends, given = np.array([self.low, self.high]), np.maximum(values, self.low)
        (low, high), given = (np.log10(ends), np.log10(given)) if self.log else (ends, given)
        part = (given - low) / (high - low) if high > low else np.full_like(given, 0.5, dtype=float)
        return (self.start + part * (self.end - self.start)).round(1)

    def ticks(self, most: int) -> list[float]:
        """Round numbers within the range."""
        if self.log:
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for factors in ((1, 2, 5), (1, 3), (1,)):
                found = [f * 10.0**k for k in decades for f in factors if self.low <= f * 10.0**k <= self.high]
                if len(found) <= most:
                    return found
            return found[:: math.ceil(len(found) / most)]
        width = (self.high - self.low) / most or 1.0
        power = 10.0 ** math.floor(math.log10(width))
        step = next(f * power for f in (1, 2, 5, 10) if f * power >= width)
        return [k * step for k in range(math.ceil(self.low / step), math.floor(self.high / step + 1e-9) + 1)]


def curves(courses: Iterable[Mapping[str, Points]], log: bool) -> Markup | None:
    """Training and validation, a line of each for every seed; nothing where nothing was logged."""
    lines = [
        (split, [(x, y) for x, y in course.get(split, ()) if math.isfinite(y) and (y > 0 or not log)])
        for course in courses
        for split in ("train", "val")
    ]
    values = [point for _, points in lines for point in points]
    if not values:
        return None
    x = Scale(0, max(step for step, _ in values), LEFT, RIGHT)
    y = Scale(min(value for _, value in values), max(value for _, value in values), BOTTOM, TOP, log)
    shapes = [shape for split, points in lines if points for shape in drawn(split, thinned(points), x, y)]
    frame = [across(place, f"{tick:.4g}") for tick, place in placed(y, 5)]
    frame += [below(place, f"{tick:,.0f}") for tick, place in placed(x, 4)]
    return el("svg", *frame, *shapes, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label="by training step")


def placed(scale: Scale, most: int) -> Iterator[tuple[float, float]]:
    ticks = scale.ticks(most)
    return zip(ticks, scale(ticks).tolist())


def thinned(points: Points) -> Points:
    stride = math.ceil(len(points) / MOST)
    return [*points[:-1:stride], points[-1]]


def drawn(split: str, points: Points, x: Scale, y: Scale) -> list[Markup]:
    """A line, and where points are few, as in validation, each of them."""
    steps, values = np.array(points).T
    places = list(zip(x(steps).tolist(), y(values).tolist()))
    line = el("path", class_=split, d="M" + "L".join(f"{a} {b}" for a, b in places))
    dots = el("path", class_=f"{split} dots", d="".join(f"M{a} {b}h0" for a, b in places))
    return [line, dots] if split == "val" or len(points) == 1 else [line]


def across(height: float, label: str) -> Markup:
    line = el("path", class_="grid", d=f"M{LEFT} {height}H{RIGHT}")
    return el("g", line, el("text", label, x=LEFT - 6, y=height + 4, text_anchor="end"))


def below(place: float, label: str) -> Markup:
    return el("text", label, x=place, y=BOTTOM + 18, text_anchor="middle")


def span(scores: Sequence[np.ndarray], log: bool) -> Scale:
    """What holds all tasks of several methods."""
    values = finite(np.concatenate(scores))
    positive = values[values > 0]
    kept = positive if log and len(positive) else values if len(values) else np.zeros(1)
    return Scale(float(kept.min()), float(kept.max()), 8, BAR_WIDTH - 8, log and len(positive) > 0)


def finite(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def distribution(scores: np.ndarray, scale: Scale) -> Markup:
    """How many tasks have which score: a bar for each of a few values, else for each part of the range."""
    places = scale(finite(scores))
    found, counts = np.unique(places, return_counts=True)
    if len(found) > BARS:
        counts, edges = np.histogram(places, bins=BARS, range=(scale.start, scale.end))
        found = (edges[:-1] + edges[1:]) / 2
    heights = (BAR_HEIGHT - 4) * counts / counts.max(initial=1)
    wide = min(14.0, 0.8 * float(np.diff(found).min())) if len(found) > 1 else 14.0
    bars = (f"M{a - wide / 2:.1f} {BAR_HEIGHT}v{-b:.1f}h{wide:.1f}v{b:.1f}z" for a, b in zip(found, heights) if b)
    means = scale(finite(scores.mean(keepdims=True)))
    return el(
        "svg",
        el("path", class_="bars", d="".join(bars)),
        (el("path", class_="mean", d=f"M{mean} 0V{BAR_HEIGHT}") for mean in means),
        viewBox=f"0 0 {BAR_WIDTH} {BAR_HEIGHT}",
        width=BAR_WIDTH,
        height=BAR_HEIGHT,
        role="img",
        aria_label="how many tasks have which score",
    )
