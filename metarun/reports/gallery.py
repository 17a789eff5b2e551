"""The inputs of a model on a page: each with what is predicted for it, and all as points of a map."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from metarun.datasets.preprocessing import Named
from metarun.reports import charts
from metarun.runs.prediction import Prediction


def to_images(items: Any) -> list[Image.Image] | None:
    """Pictures as a person sees them, of uint8 [n, C, S, S] or of normalised values; None if inputs are no pictures."""
    if not isinstance(items, Tensor) or items.dim() != 4 or items.shape[1] not in (1, 3):
        return None
    if items.is_floating_point():
        low, high = items.aminmax()
        items = (255 * (items - low) / (high - low).clamp(min=1e-8)).round().byte()
    return [Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x) for x in items.cpu().permute(0, 2, 3, 1).numpy()]


@dataclass(frozen=True)
class Card:
    """An input on the page."""

    name: str
    picture: str | None  # as an address that holds it
    text: str  # what is shown where there is no picture
    guesses: list[tuple[str, str]]  # class and its probability, the likeliest first; empty in the support
    note: str  # its label, or whether the likeliest class is that
    wrong: bool


@dataclass(frozen=True)
class Map:
    """Features in two dimensions."""

    chart: Markup
    about: str
    keys: list[tuple[str, str, str]]  # name, mark and colour of each class


def draw_map(features: Tensor, labels: Sequence[Any], large: Sequence[bool], hollow: Sequence[bool]) -> Map:
    """Draw features [n, D], coloured by label; see `charts.draw_map`."""
    names = sorted({str(label) for label in labels if label is not None})
    numbers = [names.index(str(label)) if label is not None else -1 for label in labels]
    points, about = flatten(features.double().numpy())
    with charts.page_style():
        chart = charts.draw_map(points, numbers, large, hollow, "map")
    return Map(chart, about, [(name, *charts.find_mark(i)) for i, name in enumerate(names)])


def flatten(features: NDArray[np.float64]) -> tuple[NDArray[np.float64], str]:
    """Points [n, 2] for features [n, D], and how they were made: t-SNE with scikit-learn, else principal components."""
    n = len(features)
    if n > 10 and find_spec("sklearn"):
        from sklearn.manifold import TSNE

        points = TSNE(perplexity=min(30, n // 4), init="pca", random_state=0).fit_transform(features)
        return points.astype(np.float64), "t-SNE: near points are alike, distances between groups mean little"
    centred = features - features.mean(0)
    _, sizes, axes = np.linalg.svd(centred, full_matrices=False)
    axes = axes[:2] * np.sign(axes[np.arange(len(axes[:2])), np.abs(axes[:2]).argmax(1)])[:, None]
    points = np.pad(centred @ axes.T, ((0, 0), (0, 2 - len(axes))))
    share = (sizes[:2] ** 2).sum() / max((sizes**2).sum(), 1e-30)
    return points, f"The first two principal components, {100 * share:.0f} % of the variance"


def embed_picture(image: Image.Image) -> str:
    """The address of a picture that holds its bytes."""
    content, kind = io.BytesIO(), "jpeg" if image.mode == "RGB" else "png"
    image.save(content, kind, **({"quality": 85} if kind == "jpeg" else {}))
    return charts.embed(content.getvalue(), kind)


def make_cards(inputs: Named, chosen: Sequence[int], prediction: Prediction | None, top: int) -> list[Card]:
    """The chosen inputs, with what is predicted for them."""
    images = to_images(inputs.items)
    classes = [] if prediction is None else [str(name) for name in prediction.classes]
    cards = []
    for i in chosen:
        guesses = []
        if prediction is not None:
            values, likeliest = prediction.probabilities[i].sort(descending=True, stable=True)
            guesses = [(classes[j], f"{100 * p:.0f} %") for j, p in zip(likeliest.tolist(), values.tolist())]
            guesses = guesses[: top if prediction.sets is None else len(prediction.sets[i])]
        label = "" if inputs.labels[i] is None else str(inputs.labels[i])
        wrong = label in classes and label != guesses[0][0]
        note = f"is {label}" if wrong else "right" if label in classes else label
        picture, text = (embed_picture(images[i]), "") if images else (None, str(inputs.items[i]))
        cards.append(Card(inputs.names[i], picture, text, guesses, note, wrong))
    return cards
