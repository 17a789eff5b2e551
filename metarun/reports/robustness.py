"""Tables of what probes found: methods ranked by more than their clean accuracy."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from metarun.config.registry import style
from metarun.reports.collect import Run

CALIBRATION = "calibration"
FIGURES = ("ece", "if calibrated", "mce", "nll", "brier")  # of calibration, before and after the temperature


class Group(NamedTuple):
    """Runs whose probes took tasks of one kind and number, which some of them may fall short of."""

    title: str
    tasks: int
    runs: dict[str, Run]  # by name


def group_runs(runs: Iterable[Run]) -> list[Group]:
    """Groups of runs that probes have looked at."""
    found: dict[str, Group] = {}
    for run in runs:
        if run.findings:
            facts = max(run.findings.values(), key=lambda facts: facts["tasks"])
            task = f"{facts['ways']}-way {facts['shots']}-shot, {facts['queries']} queries, {facts['tasks']} tasks"
            title = f"{run.dataset}, {task}"
            group = found.setdefault(title, Group(title, facts["tasks"], {})).runs
            group[run.name if run.name not in group else f"{run.name}, {run.folder.name}"] = run
    return list(found.values())


def rank_methods(group: Group) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """The clean figure and the score of each probe with its rank, best mean rank first. Equals share a mean rank."""
    scores: dict[str, dict[str, float]] = {"clean": {name: run.estimate("test")[0] for name, run in group.runs.items()}}
    better = {"clean": next(iter(group.runs.values())).result.metric.higher_is_better}
    for probe in sorted({probe for run in group.runs.values() for probe in run.findings}):
        for name, run in group.runs.items():
            if probe in run.findings and (score := run.findings[probe]["score"]) is not None:
                scores.setdefault(probe, {})[name] = score["mean"]
                better[probe] = run.findings[probe]["higher_is_better"]
    ranks = {probe: rank(found, better[probe]) for probe, found in scores.items()}
    means = {
        name: sum(places) / len(places)
        for name in group.runs
        if (places := [found[name] for found in ranks.values() if name in found])
    }
    headline = next(iter(group.runs.values())).result.headline

    def fill(probe: str, name: str) -> str:
        if name not in scores[probe]:
            return ""
        figure = show("ece" if probe == CALIBRATION else headline, scores[probe][name])
        tasks = group.tasks if probe == "clean" else group.runs[name].findings[probe]["tasks"]
        fewer = f" of {tasks} tasks" if tasks < group.tasks else ""
        return f"{figure}{fewer} ({ranks[probe][name]:g})"

    lines = [
        (name, *(fill(probe, name) for probe in scores), f"{means[name]:.2f}")
        for name in sorted(means, key=lambda name: means[name])
    ]
    return ("method", *scores, "mean rank"), lines


def rank(scores: Mapping[str, float], higher_is_better: bool) -> dict[str, float]:
    """Name -> place from 1 on; equals have the mean of their places."""
    values = list(scores.values())

    def place(value: float) -> float:
        ahead = sum(other > value if higher_is_better else other < value for other in values)
        return ahead + (values.count(value) + 1) / 2

    return {name: place(value) for name, value in scores.items()}


def list_calibration(group: Group) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A line for each method and temperature, in the order of the final error."""
    found = {name: run.findings[CALIBRATION] for name, run in group.runs.items() if CALIBRATION in run.findings}
    lines = [
        (name, f"{row['temperature']:.3g}", *(show(figure, row[figure]) for figure in FIGURES))
        for name, facts in sorted(found.items(), key=lambda entry: float(entry[1]["score"]["mean"]))
        for row in facts["table"]
    ]
    return ("method", "temperature", *FIGURES), lines


def show(name: str, value: Any) -> str:
    """A figure as its metric is shown."""
    if isinstance(value, Mapping):
        return style(name).shown(value["mean"], value["ci95"])
    return style(name).shown(value) if isinstance(value, float) else str(value)


def has_probes(groups: Sequence[Group], calibration: bool) -> list[Group]:
    """The groups with a finding of calibration, or with a ranked one of any kind."""

    def has(run: Run) -> bool:
        return CALIBRATION in run.findings if calibration else any(f["score"] for f in run.findings.values())

    return [group for group in groups if any(map(has, group.runs.values()))]
