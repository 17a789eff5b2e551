"""Curves, distributions of scores and maps of features as inline SVG, drawn by Matplotlib in the page's colours."""

import base64
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib
import numpy as np
from markupsafe import Markup, escape
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, Locator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from metarun.core.statistics import Scores

Points = Sequence[tuple[float, float]]
Scale = Literal["linear", "log"]

PIXEL = 1 / 72  # in inches: a pixel of the SVG
CURVES = (360, 210)  # width and height in pixels
BARS = (240, 36)
MAP = (640, 440)
MARKS = dict(zip("osD^vP*X", "●■◆▲▼✚★✖"))  # of a map's points: Matplotlib's name, and the same as text
COLOURS = (  # of classes, legible on white and on black
    "#3b82c4", "#d9762b", "#3f9e57", "#c9484c", "#8e6bbf", "#9c6b4f", "#d070ae", "#8f9431", "#2fa0a8", "#7d8590",
)  # fmt: skip
MOST_BARS = 40  # of a distribution; more different scores than that are put into bins
MOST_POINTS = 100  # of a curve; of more points every second, third, ... is drawn
ROUND = [1, 2, 2.5, 5, 10]  # steps between ticks
INKS = {name: f"#0000{number:02x}" for number, name in enumerate(("train", "val", "text", "quiet", "line", "bars"), 1)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "metarun",  # the same chart has the same bytes
    "font.family": "DejaVu Sans",  # which Matplotlib brings, to measure with; the page has its own
    "font.size": 11,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.edgecolor": "none",
    "grid.color": INKS["line"],
    "xtick.color": "none",
    "ytick.color": "none",
    "xtick.labelcolor": INKS["quiet"],
    "ytick.labelcolor": INKS["quiet"],
    "xtick.bottom": False,
    "ytick.left": False,
    "ytick.minor.left": False,
}


@contextmanager
def page_style() -> Iterator[None]:
    """Draw charts in the style of the page. Entered once for all charts, because entering takes time."""
    with matplotlib.rc_context(STYLE):
        yield


def draw_curves(seeds: Iterable[Mapping[str, Points]], scale: Scale, name: str) -> Markup | None:
    """Draw training and validation, one line of each per seed; None if there is no finite value.

    seeds: for each seed, split -> (step, shown number). name: prefix of the ids within the SVG.
    """
    lines = [(split, _drawable(seed.get(split, ()), scale)) for seed in seeds for split in ("train", "val")]
    values = [value for _, points in lines for _, value in points]
    if not values:
        return None
    figure = Figure(figsize=(CURVES[0] * PIXEL, CURVES[1] * PIXEL), dpi=72)
    axes = figure.add_axes((0.14, 0.12, 0.82, 0.82))
    axes.set_yscale(scale)
    for split, points in lines:
        if points:
            marker = "o" if split == "val" or len(points) == 1 else ""
            steps, shown = zip(*_thin(points))
            axes.plot(steps, shown, color=INKS[split], linewidth=1.5, marker=marker, markersize=4, clip_on=False)
    axes.set_xlim(left=0)
    axes.yaxis.grid(clip_on=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=ROUND, integer=True))
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.yaxis.set_major_locator(_locate_ticks(min(values), max(values), scale))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.5g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    return _to_svg(figure, name, "headline metric by training step")


def _drawable(points: Points, scale: Scale) -> Points:
    return [(step, value) for step, value in points if math.isfinite(value) and (value > 0 or scale == "linear")]


def _thin(points: Points) -> Points:
    """Keep at most MOST_POINTS points and the last one."""
    stride = math.ceil(len(points) / MOST_POINTS)
    return [*points[:-1:stride], points[-1]]


def _locate_ticks(low: float, high: float, scale: Scale) -> Locator:
    """About five round numbers; on a logarithmic axis of less than a decade they are evenly spaced."""
    if low == high:
        return FixedLocator([low])
    decades = math.log10(high / low) if scale == "log" else 0
    if decades < 1:
        return MaxNLocator(5, steps=ROUND)
    return LogLocator(subs=(1, 2, 5) if decades < 2 else (1, 3) if decades < 3 else (1,), numticks=6)


@dataclass(frozen=True)
class Span:
    """The range of the scores of several methods."""

    low: float
    high: float
    scale: Scale

    @classmethod
    def over(cls, scores: Iterable[Scores], scale: Scale) -> "Span":
        """Hold all finite scores, [tasks] each. A logarithmic range needs a positive score and leaves out others."""
        values = _finite(np.concatenate(list(scores)))
        positive = values[values > 0]
        if scale == "log" and len(positive):
            return cls(float(positive.min()), float(positive.max()), "log")
        return cls(float(values.min()), float(values.max()), "linear") if len(values) else cls(0.0, 0.0, "linear")

    def place(self, values: Scores) -> Scores:
        """Positions within the range: 0 is its low end, 1 its high end; 0.5 if it is a single value."""
        low, high, shown = self.low, self.high, np.maximum(values, self.low)
        if self.scale == "log":
            low, high, shown = math.log10(low), math.log10(high), np.log10(shown)
        return (shown - low) / (high - low) if high > low else np.full(shown.shape, 0.5)


def _finite(values: Scores) -> Scores:
    return values[np.isfinite(values)]


def count_scores(scores: Scores, span: Span) -> tuple[Scores, Scores]:
    """Left and right ends of bars, [bars, 2], and the number of tasks in each, [bars].

    A bar for each different score if there are few of them, else for each part of the range.
    """
    places = span.place(_finite(scores))
    found, counts = np.unique(places.round(4), return_counts=True)
    if len(found) > MOST_BARS:
        counts, edges = np.histogram(places, bins=MOST_BARS, range=(0.0, 1.0))
        return np.stack([edges[:-1], edges[1:]], 1), counts.astype(float)
    width = min(0.06, 0.8 * float(np.diff(found).min())) if len(found) > 1 else 0.06
    return found[:, None] + width * np.array([-0.5, 0.5]), counts.astype(float)


def draw_distribution(scores: Scores, span: Span, name: str) -> Markup:
    """Draw how many tasks have which score, [tasks], with a line at the mean."""
    figure = Figure(figsize=(BARS[0] * PIXEL, BARS[1] * PIXEL), dpi=72)
    axes = figure.add_axes((0.04, 0, 0.92, 0.9))
    axes.set_axis_off()
    bars, counts = count_scores(scores, span)
    edges = bars.flatten()  # between two bars there is one of height 0
    heights = np.stack([counts, np.zeros(len(counts))], 1).flatten()[:-1]
    if len(edges):
        axes.stairs(heights, edges, fill=True, color=INKS["bars"], clip_on=False)
    mean = _finite(scores.mean(keepdims=True))
    if len(mean):
        axes.axvline(float(span.place(mean)[0]), color=INKS["text"], linewidth=2, clip_on=False)
    axes.set(xlim=(0, 1), ylim=(0, counts.max(initial=1)))
    return _to_svg(figure, name, "number of test tasks by score")


def find_mark(number: int) -> tuple[str, str]:
    """The mark, as text, and the colour of a class; after 80 classes they repeat."""
    marks = [*MARKS.values()]
    return marks[number // len(COLOURS) % len(marks)], COLOURS[number % len(COLOURS)]


def draw_map(
    points: Scores, numbers: Sequence[int], large: Sequence[bool], hollow: Sequence[bool], name: str
) -> Markup:
    """Draw points [n, 2], each with the mark and the colour of its class; -1: no class.

    large: with an outline, drawn above the others. hollow: the outline of the mark alone.
    """
    figure = Figure(figsize=(MAP[0] * PIXEL, MAP[1] * PIXEL), dpi=72)
    axes = figure.add_axes((0.02, 0.02, 0.96, 0.96))
    axes.set_axis_off()
    for kind in sorted(set(zip(large, hollow, numbers))):
        chosen = [i for i, other in enumerate(zip(large, hollow, numbers)) if other == kind]
        is_large, is_hollow, number = kind
        marker = [*MARKS][number // len(COLOURS) % len(MARKS)] if number >= 0 else "o"
        colour = COLOURS[number % len(COLOURS)] if number >= 0 else INKS["quiet"]
        axes.scatter(
            points[chosen, 0],
            points[chosen, 1],
            s=90 if is_large else 28,
            marker=marker,
            facecolor="none" if is_hollow else colour,
            edgecolor=INKS["text"] if is_large else colour,
            linewidth=1.2 if is_large or is_hollow else 0,
            clip_on=False,
        )
    return _to_svg(figure, name, "map of features")


def embed(content: bytes, kind: str) -> str:
    """The address of a picture (png, jpeg, gif) that holds its bytes."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _to_svg(figure: Figure, prefix: str, label: str) -> Markup:
    """The SVG alone, with its own ids, a description, and the page's colours in place of the inks."""
    out = io.StringIO()
    figure.savefig(out, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = out.getvalue()
    text = text[text.index("<svg ") :]
    text = re.sub(r"<defs>\s*<style.*?</defs>", "", text, count=1, flags=re.DOTALL)  # it would style the whole page
    text = re.sub(r'(\bid="|href="#)', rf"\g<1>{prefix}-", text)
    for name, ink in INKS.items():
        text = text.replace(ink, f"var(--{name})")
    return Markup(text.replace("<svg ", f'<svg role="img" aria-label="{escape(label)}" ', 1))
