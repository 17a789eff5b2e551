"""What a person looks at after a run: a few lines, curves, and a table of per-task scores."""

import csv
import json
from pathlib import Path
from typing import Any

from metarun.config.registry import known
from metarun.engine.evaluate import Scores


def result_lines(result: dict[str, Any]) -> list[str]:
    """One line for each row of the test: mean, 95 % interval and what the figure means."""
    lines = []
    for name, row in result["test"].items():
        metric = next(metric for metric in known("metric") if metric in row)
        mean, ci95 = row[metric]["mean"], row[metric]["ci95"]
        if metric == "accuracy":
            figure = f"accuracy {100 * mean:.2f} +- {100 * ci95:.2f} %"
            task = f"{row['ways']}-way {row['shots']}-shot, {row['queries']} queries per class"
        else:
            figure = f"{metric} {mean:.4f} +- {ci95:.4f}"
            task = f"{row['shots']} {'points' if metric == 'mse' else 'examples'}"
        mode = "transductive" if row["transductive"] else "inductive"
        mode += f", ensemble of {row['ensemble']}" if "ensemble" in row else ""
        lines.append(f"{name:20} {figure}  ({task}, {row['tasks']} tasks, {mode})")
        if "mse_by_step" in row:
            steps = " ".join(f"{mse:.3f}" for mse in row["mse_by_step"]["mean"])
            lines.append(f"{'':20} mse after 0, 1, ... inner steps: {steps}")
        if "accuracy_by_instance" in row:
            instances = " ".join(f"{100 * mean:.1f}" for mean in row["accuracy_by_instance"]["mean"])
            lines.append(f"{'':20} accuracy at the 1st, 2nd, ... of a class: {instances} %")
    return lines


def write_scores(path: Path, scores: Scores) -> None:
    """One line per task, a column per metric; an entry of a vector metric has a column of its own."""
    path.parent.mkdir(exist_ok=True)
    columns = {
        name if values.dim() == 1 else f"{name}_{i}": column.tolist()
        for name, values in scores.per_task.items()
        for i, column in enumerate(values.flatten(1).T if values.dim() > 1 else [values])
    }
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["task", *columns])
        writer.writerows((i, *row) for i, row in enumerate(zip(*columns.values())))


def draw_vectors(folder: Path, rows: dict[str, Any]) -> None:
    """`accuracy_by_step.png` and the like: of each metric with several values per task, mean and 95 % interval."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    names = {name for row in rows.values() for name, value in row.items() if "_by_" in name and "ci95" in value}
    for name in names:
        metric, _, by = name.partition("_by_")
        figure = Figure(figsize=(5, 4), layout="constrained")
        axis = figure.subplots()
        for row, values in ((row, values[name]) for row, values in rows.items() if name in values):
            places = [i + (by == "instance") for i in range(len(values["mean"]))]  # instances are counted from 1
            axis.errorbar(places, values["mean"], values["ci95"], marker="o", markersize=3, capsize=2, label=row)
        axis.set(xlabel=by, ylabel=metric)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.grid(alpha=0.3)
        axis.legend()
        figure.savefig(folder / f"{name}.png", dpi=120)


def draw_curves(folder: Path) -> None:
    """`curves.png` from `metrics.jsonl`: the loss, and the headline figure in training and validation."""
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    headline = next(metric for metric in known("metric") if any(metric in row for row in rows))
    figure = Figure(figsize=(10, 4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, metric in zip(axes, ("loss", headline)):
        for split, style in (("train", {"alpha": 0.8}), ("val", {"marker": "o", "markersize": 3})):
            points = [(row["step"], row[metric]) for row in rows if row["split"] == split and metric in row]
            if points:
                axis.plot(*zip(*points), label=split, **style)
        axis.set(xlabel="step", ylabel=metric)
        axis.grid(alpha=0.3)
        axis.legend()
    if headline == "mse":
        axes[1].set_yscale("log")
    figure.savefig(folder / "curves.png", dpi=120)
