"""`metarun reproduce`: the experiments of a paper's table, all that is missing of them, and the report."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from metarun.cli.compose import compose, described_options
from metarun.config.errors import ConfigError, did_you_mean
from metarun.config.load import load_settings, plain
from metarun.runs.folder import RunFolder

Length = Literal["paper", "short", "smoke"]
SMOKE = ("trainer.steps=4", "trainer.eval_every=2", "trainer.log_every=1", "eval.tasks=8", "eval.val_tasks=4")
STEPS, TASKS = 3, 8  # that the time of a run is told from


def experiments(table: str, length: Length, patterns: Iterable[str]) -> list[str]:
    """Those on the dataset `table`, or of them what matches a pattern: `maml/*`, `*_5w1s`. Raises ConfigError."""
    known = list(described_options("experiment"))
    tables = sorted({name.partition("/")[2].partition("_")[0] for name in known})
    if table not in tables:
        raise ConfigError(f"there is no table {table!r}: choose from {', '.join(tables)}{did_you_mean(table, tables)}")
    long = [name for name in known if name.endswith("_paper")]
    cells = [name for name in known if name not in long and name.partition("/")[2].partition("_")[0] == table]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in cells):
            raise ConfigError(
                f"cells has {pattern!r}: it fits none of {', '.join(cells)}{did_you_mean(pattern, cells)}"
            )
    chosen = [name for name in cells if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]
    if length != "paper":
        return chosen
    if without := [name for name in chosen if f"{name}_paper" not in long]:
        raise ConfigError(
            f"length is paper: there is no such experiment of {', '.join(without)}: leave them out by cells"
        )
    return [f"{name}_paper" for name in chosen]


def request(arguments: list[str]) -> tuple[Length, list[str], list[str]]:
    """`length=` and `cells=`, and the settings that are left. Raises ConfigError."""
    named = dict(text.split("=", 1) for text in arguments if text.startswith(("length=", "cells=")))
    length = named.get("length", "short")
    if length not in get_args(Length):
        raise ConfigError(f"length is {length!r}: choose from {', '.join(get_args(Length))}")
    rest = [text for text in arguments if not text.startswith(("length=", "cells="))]
    return length, [pattern for pattern in named.get("cells", "").split(",") if pattern], rest  # type: ignore[return-value]


def outlook(jobs: dict[Path, list[str]]) -> list[str]:
    """For a person: what is done, and how long what is not will take, from a few steps of each on this machine."""
    from metarun.reports.tables import duration

    lines, total = [], 0.0
    common = set.intersection(*map(set, jobs.values())) if len(jobs) > 1 else set()
    for path, overrides in jobs.items():
        name = " ".join(text for text in overrides if text not in common)
        if RunFolder(path).result() is not None:
            lines.append(f"{name}: done")
            continue
        seconds = _seconds(overrides)
        total += seconds
        lines.append(f"{name}: about {duration(seconds)}")
    return [*lines, f"together about {duration(total)}, by a few steps of each in one process"]


def _seconds(overrides: list[str]) -> float:
    """Of a run from its beginning: its steps and validations, and its test."""
    from metarun.analysis.profile import profiled

    settings = load_settings(plain(compose(overrides)))
    parts, test, _ = profiled(settings, STEPS, TASKS)
    return (sum(parts.values()) * settings.trainer.steps + test) / 1000
