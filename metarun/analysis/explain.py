"""`metarun explain`: how a policy acts, or what a run has learned besides weights, with the numbers behind it."""

import csv
import io
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from metarun.analysis.behaviour import draw_behaviour
from metarun.config.errors import ConfigError
from metarun.config.registry import metric
from metarun.core.batch import unstack
from metarun.core.files import open_bytes, write_text
from metarun.core.formula import Formula
from metarun.core.learned import POINTS, Chart, average
from metarun.core.objectives import headline_metric
from metarun.core.seeding import generator_for
from metarun.core.types import Algorithm, Episode, Theta, Visible
from metarun.engine import checkpoint
from metarun.engine.build import Experiment
from metarun.engine.evaluate import Model, Tester
from metarun.runs.folder import RunFolder

TASKS = 20  # validation tasks that the charts are averaged over


@runtime_checkable
class Explainable(Protocol):
    """An algorithm that shows what it has learned."""

    def explain(self, theta: Theta, episode: Episode) -> dict[str, Chart]: ...  # of one task


@runtime_checkable
class Simplifiable(Protocol):
    """An algorithm whose learned losses may be written as formulas."""

    def simplify(self, theta: Theta, tasks: Sequence[Episode]) -> tuple[Algorithm, Theta, dict[str, Formula]] | None:
        """Method and theta with the formulas in place of the losses, and the formulas by name; None if it has none."""
        ...


def draw_learned(experiment: Experiment, folder: RunFolder) -> list[Path]:
    """Write `explained/<name>.png` and `.csv` of a run's best checkpoint: the mean over some validation tasks; of what
    acts in a world that can be drawn, `explained/behaviour.png` and `.gif`.

    Raises ConfigError if there is neither.
    """
    algo, world = experiment.algo, experiment.source.spec.world
    if not isinstance(algo, Explainable) and not isinstance(world, Visible):
        name, data = experiment.settings.algo["name"], experiment.settings.dataset["name"]
        also = f", and dataset={data} does not show what happens in it" if world is not None else ""
        raise ConfigError(f"algo={name} learns no loss and no rate{also}: there is nothing to draw")
    tensors, _ = checkpoint.load(folder.best)
    theta = {c: {n: p.detach() for n, p in params.items()} for c, params in tensors["theta"].items()}
    (folder.path / "explained").mkdir(exist_ok=True)
    if not isinstance(algo, Explainable):
        return draw_behaviour(experiment, theta, folder.path / "explained")
    tester = experiment.build_tester(experiment.plan_rows()["test"], "val")
    tasks = unstack(tester.source.sample(TASKS, generator_for(tester.row.seed, "explain")))
    each = [algo.explain(theta, task) for task in tasks]
    written = []
    for name in each[0]:
        chart = average([charts[name] for charts in each])
        place = folder.path / "explained" / name
        written += [_write_table(chart, place.with_suffix(".csv")), _draw(chart, name, place.with_suffix(".png"))]
    return written + write_formula(experiment, tester, theta, tasks, folder.path / "explained" / "formula.txt")


def write_formula(
    experiment: Experiment, tester: Tester, theta: Theta, tasks: Sequence[Episode], file: Path
) -> list[Path]:
    """Write learned losses as formulas, how well they fit, and the figure of validation tasks with them in their place.

    Writes nothing where the method has no such formula.
    """
    algo = experiment.algo
    simple = algo.simplify(theta, tasks) if isinstance(algo, Simplifiable) else None
    if simple is None:
        return []
    method, plugged, formulas = simple
    name = headline_metric(experiment.source.spec)

    def score(algo: Algorithm, theta: Theta) -> str:
        model = Model(theta, experiment.measure_statistics(theta))
        found = replace(tester, algo=algo).score([model], experiment.settings.eval.val_tasks, "vmap").summarise()[name]
        return metric(name).shown(found["mean"], found["ci95"])

    lines = []
    for loss, formula in formulas.items():
        terms = " ".join(f"{value:+.3g} {term}" for term, value in formula.coefficients.items())
        lines += [f"{loss} = {terms}", f"its slope explains {100 * formula.explained:.1f} % of the learned loss's"]
    before, after = score(algo, theta), score(method, plugged)
    lines.append(f"{name} of validation tasks: {before} as learned, {after} by formula")
    write_text(file, "\n".join(lines) + "\n")
    return [file]


def _write_table(chart: Chart, file: Path) -> Path:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([chart.across, *chart.lines])
    writer.writerows(zip(chart.x.tolist(), *(line.tolist() for line in chart.lines.values())))
    write_text(file, text.getvalue())
    return file


def _draw(chart: Chart, name: str, file: Path) -> Path:
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    few = len(chart.x) < POINTS
    for line, values in chart.lines.items():
        style = "--" if line.startswith(("mse", "cross-entropy")) else "-"
        axis.plot(chart.x, values, style, marker="o" if few else None, markersize=3, label=line)
    axis.set(xlabel=chart.across, ylabel=name)
    axis.xaxis.set_major_locator(MaxNLocator(integer=few))
    axis.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    with open_bytes(file) as content:
        figure.savefig(content, dpi=120)
    return file
