"""Runs probes on a model, and keeps what they find: `<name>.json` with the table, `<name>.png`."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metarun.config.errors import ConfigError
from metarun.config.load import read_option
from metarun.config.registry import build, check, known, style
from metarun.core.files import open_bytes, write_text
from metarun.core.statistics import Estimate
from metarun.engine.build import Experiment
from metarun.probes.probe import Figures, Finding, Probe, Subject, find_misfit

LOST = "lost"  # the name of a figure in the unit of the first one


@dataclass(frozen=True)
class Planned:
    """A probe with its settings."""

    name: str
    settings: dict[str, Any]

    def build(self) -> Probe:
        probe: Probe = build("probe", self.settings, f"probe {self.name}")
        return probe


def plan_probes(
    names: Sequence[str], experiment: Experiment, changes: Mapping[str, Mapping[str, Any]] | None = None
) -> list[Planned]:
    """The probes of these names, with settings of their YAML files and changes to them; without names all that fit.

    Raises ConfigError for an unknown name, a setting that a probe does not have, or a run that it does not fit.
    """
    chosen = names or [name for name in known("probe") if find_misfit(name, experiment) is None]
    if not chosen:
        kind = experiment.source.spec.kind
        raise ConfigError(f"no probe can look at this run of {kind}: metarun list probe says what each looks at")
    changes = changes or {}
    planned = [Planned(name, {**read_option("probe", name), **changes.get(name, {})}) for name in chosen]
    problems: list[str] = []
    for probe in planned:
        check("probe", probe.settings, problems, f"probe {probe.name}")
    if not problems:
        problems = [misfit for name in chosen if (misfit := find_misfit(name, experiment)) is not None]
    if problems:
        raise ConfigError("\n".join(problems))
    return planned


def run_probe(probe: Planned, subject: Subject, folder: Path) -> Finding:
    """Run a probe and write what it finds. Raises ConfigError if it cannot look at this model."""
    finding = probe.build().run(subject)
    folder.mkdir(parents=True, exist_ok=True)
    row = subject.row
    facts = {
        "probe": probe.name,
        "settings": probe.settings,
        "ways": row.ways,
        "shots": row.shots,
        "queries": row.queries,
        "tasks": row.tasks,
        "transductive": subject.is_transductive(row),
        "score": finding.score,
        "scored": finding.scored,
        "higher_is_better": finding.higher_is_better,
        "notes": list(finding.notes),
        "table": list(finding.table),
    }
    draw(finding, folder / f"{probe.name}.png")
    text = json.dumps(facts, indent=2, default=vars, allow_nan=False)
    write_text(folder / f"{probe.name}.json", f"{text}\n")  # last: what has it is whole
    return finding


def draw(finding: Finding, file: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    finding.draw(figure)
    with open_bytes(file) as content:
        figure.savefig(content, dpi=120)


def describe(name: str, finding: Finding) -> Iterator[str]:
    """Lines for a terminal: the table, the score, and what must be known."""
    yield f"{name}:"
    header = list(finding.table[0])
    metric = find_metric(finding.table[0])
    rows = [header]
    rows += [[show(metric if column == LOST else column, row[column]) for column in header] for row in finding.table]
    widths = [max(map(len, column)) for column in zip(*rows)]
    yield from ("  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)
    if finding.score is not None:
        yield f"  {finding.scored}: {show(metric, finding.score)}"
    yield from (f"  note: {note}" for note in finding.notes)


def find_metric(row: Figures) -> str:
    """The name of the metric that a table's first estimate is of."""
    return next((name for name, value in row.items() if isinstance(value, Estimate)), "")


def show(column: str, value: Any) -> str:
    """An entry of a table: an estimate as its metric is shown."""
    if isinstance(value, Estimate):
        assert isinstance(value.mean, float)
        assert not isinstance(value.ci95, list)
        return style(column).shown(value.mean, value.ci95)
    return f"{value:.4g}" if isinstance(value, float) else str(value)
