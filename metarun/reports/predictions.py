"""What a trained model says about queries: a table, a page, and, where queries carry labels, how often it is right."""

import csv
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from metarun.config.errors import ConfigError
from metarun.config.words import count, make_inert
from metarun.core.files import open_bytes, write_text
from metarun.datasets.preprocessing import Named
from metarun.engine.calibration import Answers, measure_unknown
from metarun.reports.gallery import draw_map, make_cards, to_images
from metarun.reports.statistics import wilson_interval
from metarun.reports.tables import Table
from metarun.reports.text import defuse
from metarun.reports.web import render
from metarun.runs.model import Model
from metarun.runs.prediction import Prediction, Regressor

MOST_SHOWN = 200  # queries, and pictures of the support, on a page
MOST_MISTAKES = 48  # on the contact sheet
MOST_CLASSES = 25  # of a confusion matrix on a page


@dataclass(frozen=True)
class Judgement:
    """Predictions beside the labels of those queries whose class the support has."""

    classes: list[Any]
    confusion: NDArray[np.int64]  # [N, N]: row is the label, column the predicted class
    mistakes: list[int]  # numbers of queries

    @property
    def summary(self) -> str:
        """The accuracy with its interval."""
        return format_share(int(self.confusion.trace()), int(self.confusion.sum()))

    @cached_property
    def by_class(self) -> Table:
        """How many queries of each class are recognised, and how many of those taken for it are of it."""
        rows = []
        for i, name in enumerate(self.classes):
            right, labelled, taken = self.confusion[i, i], self.confusion[i].sum(), self.confusion[:, i].sum()
            others = np.delete(self.confusion[i], i)
            worst = int(np.delete(np.arange(len(self.classes)), i)[others.argmax()]) if others.any() else i
            confused = f"{self.classes[worst]} ({self.confusion[i, worst]})" if worst != i else ""
            shares = (format_share(int(right), int(whole)) for whole in (labelled, taken))
            rows.append((str(name), str(labelled), *shares, confused))
        return Table(("class", "queries", "recognised", "of those taken for it", "most taken for"), rows)


def format_share(part: int, whole: int) -> str:
    """A share with its 95 % interval: "80.0 % (49.0 to 94.3 %)"."""
    if whole == 0:
        return ""
    low, high = wilson_interval(part, whole)
    return f"{100 * part / whole:.1f} % ({100 * low:.1f} to {100 * high:.1f} %)"


def judge(prediction: Prediction, labels: Sequence[Any]) -> Judgement | None:
    """Compare with the labels that are classes of the prediction; None if there are none."""
    number = {str(name): i for i, name in enumerate(prediction.classes)}
    confusion = np.zeros((len(number), len(number)), dtype=np.int64)
    mistakes = []
    for query, (label, found) in enumerate(zip(labels, prediction.logits.argmax(-1).tolist())):
        if label is not None and str(label) in number:
            confusion[number[str(label)], found] += 1
            if number[str(label)] != found:
                mistakes.append(query)
    return Judgement(prediction.classes, confusion, mistakes) if confusion.any() else None


def sort_by_doubt(prediction: Prediction) -> list[int]:
    """The numbers of the queries, that with the least probable class first."""
    doubts: list[int] = prediction.probabilities.amax(-1).argsort(stable=True).tolist()
    return doubts


def write_table(
    file: Path, prediction: Prediction, labels: Sequence[Any], order: Sequence[int], top: int | None
) -> None:
    """Write a CSV file: name and class of each query, its label if any has one, and the probability of each class; or
    of the `top` likeliest.
    """
    labelled = any(label is not None for label in labels)
    values, likeliest = prediction.probabilities.sort(descending=True, stable=True)
    sets = prediction.sets
    header = ["file", "class", *(["label"] if labelled else []), *(["set"] if sets else [])]
    if top is None:
        header += [f"p_{name}" for name in prediction.classes]
    else:
        header += [name for i in range(1, top + 1) for name in (f"class_{i}", f"p_{i}")]
    lines = [header]
    for i in order:
        label = ["" if labels[i] is None else str(labels[i])] if labelled else []
        if top is None:
            rest = [f"{p:.4f}" for p in prediction.probabilities[i].tolist()]
        else:
            pairs = zip(likeliest[i, :top].tolist(), values[i, :top].tolist())
            rest = [word for j, p in pairs for word in (str(prediction.classes[j]), f"{p:.4f}")]
        held = [" | ".join(map(str, sets[i]))] if sets else []
        lines.append([prediction.names[i], str(prediction.classes[int(likeliest[i, 0])]), *label, *held, *rest])
    write_csv(file, lines)


def write_csv(file: Path, lines: Sequence[Sequence[str]]) -> None:
    """Write a CSV file in which no name is taken for a formula or steers a terminal."""
    text = io.StringIO()
    inert = ([cell if _is_number(cell) else defuse(make_inert(cell)) for cell in line] for line in lines)
    csv.writer(text, lineterminator="\n").writerows(inert)
    write_text(file, text.getvalue())


def describe_sets(sets: Sequence[Sequence[Any]], labels: Sequence[Any], classes: Sequence[Any]) -> str:
    """Say how large the sets of answers are, and in how many of the queries with a label they hold it."""
    size, known = sum(map(len, sets)) / len(sets), set(map(str, classes))
    judged = [str(label) in map(str, held) for label, held in zip(labels, sets) if str(label) in known]
    share = f", and hold the label in {format_share(sum(judged), len(judged))}" if judged else ""
    return f"sets of answers, meant to hold the class in 90 %, have {size:.2f} of {len(classes)} classes{share}"


def describe_unknown(prediction: Prediction, labels: Sequence[Any]) -> str | None:
    """Say how well the largest score tells queries of the classes from those with other labels; None without both."""
    number = {str(name): i for i, name in enumerate(prediction.classes)}
    labelled = [i for i, label in enumerate(labels) if label is not None]
    y = torch.tensor([number.get(str(labels[i]), len(number)) for i in labelled])
    known = int((y < len(number)).sum())
    if known in (0, len(y)):
        return None
    area = float(measure_unknown(Answers(prediction.logits[labelled][None], y[None]))[0])
    told = f"{count(known, 'query')} of the classes are told from {count(len(y) - known, 'query')} of others"
    return f"AUROC {area:.4f} of the largest score, by which {told}"


def _is_number(cell: str) -> bool:
    """Whether it is a number, or several."""
    try:
        return bool([float(part) for part in cell.split()])
    except ValueError:
        return False


def draw_confusion(judgement: Judgement, file: Path) -> None:
    """Write the confusion matrix as a PNG."""
    from matplotlib.figure import Figure

    names, table = [str(name) for name in judgement.classes], judgement.confusion
    side = max(4.0, 0.45 * len(names) + 2)
    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(table / table.sum(1, keepdims=True).clip(1), cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="label")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    for (i, j), number in np.ndenumerate(table):
        if number:
            colour = "white" if number > table[i].sum() / 2 else "black"
            axes.text(j, i, str(number), ha="center", va="center", color=colour)
    with open_bytes(file) as content:
        figure.savefig(content, format="png", dpi=120)


def draw_mistakes(
    images: Sequence[Image.Image], prediction: Prediction, labels: Sequence[Any], mistakes: Sequence[int], file: Path
) -> None:
    """Write a contact sheet of at most MOST_MISTAKES mistakes, the surest first, as a PNG."""
    from matplotlib.figure import Figure

    surest, found = prediction.probabilities.amax(-1), prediction.labels
    shown = sorted(mistakes, key=lambda i: -float(surest[i]))[:MOST_MISTAKES]
    columns = min(8, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(1.7 * columns, 2.1 * rows), layout="constrained")
    grid = np.array(figure.subplots(rows, columns, squeeze=False)).flatten()
    for axes in grid:
        axes.axis("off")
    for axes, i in zip(grid, shown):
        axes.imshow(images[i], cmap="gray", vmin=0, vmax=255)
        axes.set_title(f"{labels[i]}\ntaken for {found[i]}", fontsize=7, parse_math=False)
    with open_bytes(file) as content:
        figure.savefig(content, format="png", dpi=120)


@dataclass(frozen=True)
class Request:
    """What `metarun predict` was asked for."""

    to: Path
    top: int | None  # None: all classes
    doubtful_first: bool
    page: Path | None


def predict_queries(model: Model, support: Named, query: Named, request: Request) -> Iterator[str]:
    """Adapt to the support, predict the queries and write what is asked for. Yields what to tell a person.

    Raises ConfigError.
    """
    classifier = model.adapt(support)
    if isinstance(classifier, Regressor):
        yield from write_values(classifier, query, request)
        return
    prediction = classifier.predict(query)
    judgement, order = judge(prediction, query.labels), sort_by_doubt(prediction)
    top = request.top and min(request.top, len(prediction.classes))
    about = (
        f"{count(len(query.names), 'query')}, {count(len(classifier.classes), 'class')} from "
        f"{count(len(support.names), 'example')}, by {_describe_origin(model)}"
    )
    yield about
    yield from (f"{part}: {note}" for part, read in (("support", support), ("query", query)) for note in read.notes)
    if classifier.unused:
        yield f"the last layer of {model.algo} has {classifier.unused} classes more: their logits are left out"
    write_table(request.to, prediction, query.labels, order if request.doubtful_first else range(len(order)), top)
    written = [request.to]
    if prediction.sets:
        yield describe_sets(prediction.sets, query.labels, prediction.classes)
    if told := describe_unknown(prediction, query.labels):
        yield told
    if judgement is not None:
        yield f"accuracy {judgement.summary}, of {count(int(judgement.confusion.sum()), 'query')} with a label"
        written += _draw_judgement(judgement, prediction, query, request.to)
    elif any(label is not None for label in query.labels):
        yield "none of the queries' labels is a class of the support: they are not compared"
    if request.page is not None:
        write_text(request.page, _to_html(model, support, query, prediction, judgement, about))
        written.append(request.page)
    yield f"wrote {', '.join(map(str, written))}"


def _describe_origin(model: Model) -> str:
    """The method, and how it came to be: "maml after 300 steps", "protonet on features of morgan"."""
    encoder = (model.settings.encoder or {}).get("name")
    trained = f" after {count(model.step, 'step')}" if model.step or not encoder else ""
    return model.algo + trained + (f" on features of {encoder}" if encoder else "")


def write_values(regressor: Regressor, query: Named, request: Request) -> Iterator[str]:
    """Write a CSV file: x, the predicted values and, where there is one, y; and say how far they are apart."""
    if request.page is not None or request.top is not None or request.doubtful_first:
        raise ConfigError("--html, --top and --uncertain-first are for classes: this model predicts values")
    found = regressor.predict(query).double().numpy()
    labelled = [i for i, y in enumerate(query.labels) if y is not None]
    header = ["x", *(f"prediction_{j}" for j in range(1, found.shape[1] + 1)), *(["y"] if labelled else [])]
    lines = [header]
    for name, values, y in zip(query.names, found.tolist(), query.labels):
        label = [" ".join(f"{value:g}" for value in y or ())] if labelled else []
        lines.append([name, *(f"{value:.7g}" for value in values), *label])
    write_csv(request.to, lines)
    if len(labelled) > 1:
        wanted = np.array([query.labels[i] for i in labelled]).reshape(len(labelled), -1)
        errors = ((found[labelled] - wanted) ** 2).mean(1)
        half = 1.96 * errors.std(ddof=1) / len(errors) ** 0.5
        yield f"mean squared error {errors.mean():.4g} ± {half:.2g}, of {count(len(errors), 'query')} with a y"
    yield f"wrote {request.to}"


def _draw_judgement(judgement: Judgement, prediction: Prediction, query: Named, to: Path) -> Iterator[Path]:
    confusion, sheet = (to.with_name(f"{to.stem}_{name}.png") for name in ("confusion", "mistakes"))
    draw_confusion(judgement, confusion)
    yield confusion
    images = to_images(query.items)
    if images and judgement.mistakes:
        draw_mistakes(images, prediction, query.labels, judgement.mistakes, sheet)
        yield sheet


def _to_html(
    model: Model, support: Named, query: Named, prediction: Prediction, judgement: Judgement | None, about: str
) -> str:
    shown = sort_by_doubt(prediction)[:MOST_SHOWN]
    chart, mistakes = None, set(judgement.mistakes if judgement else ())
    if "backbone" in model.theta:
        features = torch.cat([model.embed(support), model.embed(query)])
        hollow = [False] * len(support.names) + [i in mistakes for i in range(len(query.names))]
        large = [True] * len(support.names) + [False] * len(query.names)
        chart = draw_map(features, [*support.labels, *prediction.labels], large, hollow)
    return render(
        "predictions.html.jinja",
        heading="Predictions",
        summary=about,
        judgement=judgement,
        confusion=_tabulate(judgement) if judgement and len(judgement.classes) <= MOST_CLASSES else None,
        map=chart,
        queries=make_cards(query, shown, prediction, top=3),
        sets=prediction.sets is not None,
        left=len(query.names) - len(shown),
        support=make_cards(support, range(min(MOST_SHOWN, len(support.names))), None, top=0),
    )


def _tabulate(judgement: Judgement) -> Table:
    names = [str(name) for name in judgement.classes]
    rows = [(name, *(str(n) if n else "" for n in line)) for name, line in zip(names, judgement.confusion.tolist())]
    return Table(("label", *names), rows)


def embed_inputs(model: Model, inputs: Named, to: Path, page: Path | None) -> Iterator[str]:
    """Write the features of inputs as CSV or NumPy arrays, and a page with their map. Yields what to tell a person.

    Raises ConfigError.
    """
    features, labelled = model.embed(inputs), any(label is not None for label in inputs.labels)
    labels = ["" if label is None else str(label) for label in inputs.labels]
    if to.suffix == ".npz":
        arrays: dict[str, Any] = {"files": np.array(inputs.names), "embeddings": features.numpy()}
        with open_bytes(to) as content:
            np.savez(content, **arrays | ({"labels": np.array(labels)} if labelled else {}))
    else:
        lines = [["file", *(["label"] if labelled else []), *(f"e{i}" for i in range(features.shape[1]))]]
        for name, label, values in zip(inputs.names, labels, features.tolist()):
            lines.append([name, *([label] if labelled else []), *(f"{value:.7g}" for value in values)])
        write_csv(to, lines)
    yield from inputs.notes
    yield f"{count(len(features), 'embedding')} of {count(features.shape[1], 'number')}: {to}"
    if page is not None:
        number = len(inputs.names)
        write_text(
            page,
            render(
                "predictions.html.jinja",
                heading="Embeddings",
                summary=f"{count(number, 'input')}, embedded by {_describe_origin(model)}",
                judgement=None,
                confusion=None,
                map=draw_map(features, inputs.labels, [True] * number, [False] * number),
                queries=[],
                left=0,
                support=make_cards(inputs, range(min(MOST_SHOWN, number)), None, top=0),
            ),
        )
        yield f"wrote {page}"
