"""Finished runs as flat records: one for each row of each run's test, ready for a data frame."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from metarun.config.errors import ConfigError
from metarun.reports.collect import Run, read_runs


def read_records(folder: str | Path) -> list[dict[str, Any]]:
    """Read every finished run below the folder; see `metarun.collect`. Raises ConfigError if there is none."""
    if not isinstance(folder, str | Path):
        raise ConfigError(f"collect({folder!r}): give a folder with runs")
    return [record for run in read_runs([Path(folder)]) for record in list_records(run)]


def list_records(run: Run) -> Iterator[dict[str, Any]]:
    """Yield a record for each row of the test; `mean` and `ci95` are those of the headline metric, unscaled."""
    result = run.result
    for name, row in result.rows.items():
        mean, ci95 = run.estimate(name)
        yield {
            "algo": run.algo,
            "dataset": run.collection,
            "tested_on": run.collection if row.data is None else row.data["name"],
            "split": row.split,
            "encoder": run.encoder,
            "classes_seen": result.dataset.get("encoder", {}).get("classes_seen"),  # in the encoder's pre-training
            "experiment": result.choices.get("experiment"),
            "backbone": result.config["backbone"]["name"],
            "ways": row.ways,
            "shots": row.shots,
            "queries": row.queries,
            "seed": run.seed,
            "row": name,
            "metric": result.headline,
            "mean": mean,
            "ci95": ci95,
            "tasks": row.tasks,
            "transductive": row.transductive,
            "steps": result.training.steps,
            "seconds": result.training.seconds,
            "tasks_per_second": result.training.tasks_per_second,
            "device": result.device,
            "commit": result.commit,
            "folder": str(run.folder),
        }
