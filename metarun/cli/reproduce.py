"""`metarun reproduce`: the experiments of a paper's table, and how long those that are missing would take."""

from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Literal, get_args

from metarun.cli.compose import compose, describe_options
from metarun.cli.outlook import find_rates, identify
from metarun.cli.plain import find_table
from metarun.cli.sweep import Job
from metarun.config.errors import ConfigError, offer
from metarun.config.load import resolve
from metarun.config.words import count, format_duration

Length = Literal["paper", "short", "smoke"]
SMOKE = ("trainer.steps=4", "trainer.eval_every=2", "trainer.log_every=1", "eval.tasks=8", "eval.val_tasks=4")


def read(arguments: Sequence[str]) -> tuple[Length, list[str], list[str]]:
    """Split into `length=`, the patterns of `cells=`, and settings. Raises ConfigError."""
    named = dict(text.split("=", 1) for text in arguments if text.startswith(("length=", "cells=")))
    rest = [text for text in arguments if not text.startswith(("length=", "cells="))]
    length = named.get("length", "short")
    for known in get_args(Length):
        if length == known:
            return known, [pattern for pattern in named.get("cells", "").split(",") if pattern], rest
    raise ConfigError(f"length is {length!r}: choose from {', '.join(get_args(Length))}")


def choose(table: str, length: Length, patterns: Sequence[str], config_dir: str | None = None) -> list[str]:
    """The experiments on the dataset `table` that fit one of the patterns (`maml/*`, `*_5w1s`). Raises ConfigError.

    All of them if there is no pattern.
    """
    known = list(describe_options("experiment", config_dir))
    datasets = describe_options("dataset", config_dir)
    table_of = {name: find_table(name, datasets) for name in known}
    tables = sorted(set(table_of.values()) - {""})
    if table not in tables:
        raise ConfigError(f"there is no table {table!r}: {offer(table, tables)}")
    long = [name for name in known if name.endswith("_paper")]
    cells = [name for name in known if name not in long and table_of[name] == table]
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in cells):
            raise ConfigError(f"cells has {pattern!r}, which fits no experiment: {offer(pattern, cells, 'experiment')}")
    chosen = [name for name in cells if not patterns or any(fnmatchcase(name, pattern) for pattern in patterns)]
    if length != "paper":
        return chosen
    if without := [name for name in chosen if f"{name}_paper" not in long]:
        raise ConfigError(f"length is paper: {', '.join(without)} have no such form: leave them out by cells=")
    return [f"{name}_paper" for name in chosen]


def estimate(jobs: Sequence[Job], root: Path, config_dir: str | None = None) -> Iterator[str]:
    """For each job whether it is done or how long it will take on this machine; and the sum. Nothing is run.

    root: the folder in which runs of the same setting are looked for; without any a job is "not timed yet".
    """
    recorded, total, unknown = find_rates(root), 0.0, 0
    for job in jobs:
        if job.outcome == "done":
            yield f"{job.label}: done"
            continue
        values = resolve(compose(job.overrides, config_dir))
        rate = recorded.get(identify(values))
        if not rate:
            unknown += 1
            yield f"{job.label}: not timed yet"
            continue
        seconds = values["trainer"]["steps"] * values["trainer"]["tasks_per_step"] / rate
        total += seconds
        yield f"{job.label}: about {format_duration(seconds)}"
    known = [f"together about {format_duration(total)}"] if total or not unknown else []
    rest = [f"{count(unknown, 'job')} not timed yet"] if unknown else []
    yield " and ".join(known + rest)
