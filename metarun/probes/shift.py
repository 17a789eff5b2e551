"""Other tasks than those of the training: other ways and shots, other data."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from metarun.config.errors import ConfigError
from metarun.config.load import keep_form, read_option
from metarun.config.registry import register, style
from metarun.config.schema import Count
from metarun.config.traits import ProbeTraits
from metarun.core.objectives import headline_metric
from metarun.probes.draw import draw_heat, name_axis
from metarun.probes.probe import Figures, Finding, Subject, estimate, require

OWN = "as in the test"


@register("probe", "shift", ProbeTraits(kinds=("classification",)))
@dataclass(frozen=True)
class Shift:
    """Accuracy over ways and shots, and on other data."""

    ways: list[Count]
    shots: list[Count]
    queries: Count
    datasets: dict[str, dict[str, Any]]

    def run(self, subject: Subject) -> Finding:
        own = replace(subject.row, queries=self.queries)
        form = subject.pictures.to_json() if subject.pictures else {}
        rows = {  # before the map, which takes a while: a mistake in their settings is told at once
            (name, own.ways, own.shots): replace(own, dataset=complete(changes, form))
            for name, changes in self.datasets.items()
        }
        rows |= {(OWN, ways, shots): replace(own, ways=ways, shots=shots) for ways in self.ways for shots in self.shots}
        name, found = subject.headline, {}
        refused: dict[str, list[str]] = {}
        for key, row in rows.items():
            try:
                tester = subject.build_tester(row)
            except ConfigError as error:
                require(key[0] == OWN, f"shift.datasets.{key[0]}: {error}")
                refused.setdefault(str(error), []).append("{}, {}-way {}-shot".format(*key))
                continue
            require(headline_metric(tester.source.spec) == name, f"{key[0]} is not judged by {name}")
            found[key] = subject.score(tester).per_task[name]
        require(bool(found), next(iter(refused), "shift.ways and shift.datasets are empty"))
        table: list[Figures] = [
            {"data": data, "ways": ways, "shots": shots, name: estimate(scores)}
            for (data, ways, shots), scores in sorted(found.items(), key=lambda item: item[0][0] != OWN)
        ]
        return Finding(
            table=table,
            draw=partial(draw, table, name),
            notes=[f"left out: {'; '.join(cells)}: {reason}" for reason, cells in refused.items()],
        )


def complete(changes: Mapping[str, Any], form: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of another dataset, which has pictures of the network's form where it says nothing else."""
    if "name" not in changes:
        return dict(changes)
    values = read_option("dataset", changes["name"])
    return {**keep_form(values, form, changes), **changes, "name": values["name"]}


def draw(table: list[Figures], name: str, figure: Any) -> None:
    """A map over ways and shots; other data beside it."""
    scale = style(name).scale
    here = {(row["ways"], row["shots"]): row[name].mean for row in table if row["data"] == OWN}
    others = {(row["data"], f"{row['ways']}w{row['shots']}s"): row[name].mean for row in table if row["data"] != OWN}
    parts = [(cells, names) for cells, names in ((here, ("ways", "shots")), (others, ("data", "task"))) if cells]
    figure.set_size_inches(5.5 * len(parts), 4.5)
    for axis, (cells, names) in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts):
        draw_heat(axis, cells, names, scale)
        axis.set_title(name_axis(name))
