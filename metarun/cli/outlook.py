"""How long a run will take, as far as runs of its setting have been timed; and the first line that says so."""

import contextlib
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra.conf import HydraConf
from omegaconf import DictConfig

from metarun.cli.compose import compose
from metarun.cli.plain import LIKE
from metarun.config.errors import ConfigError
from metarun.config.load import resolve
from metarun.config.words import count, format_duration
from metarun.runs.folder import RunFolder
from metarun.runs.result import Training

SETTLED = 10.0  # seconds of a training, below which its speed is that of its first steps
SPEEDS = Path(__file__).with_name("speeds.yaml")  # of the runs in docs/results: experiment -> tasks per second, device


def announce(
    values: Mapping[str, Any], hydra: DictConfig | HydraConf, folder: Path, config_dir: str | None = None
) -> str | None:
    """Which experiment's settings a run takes, how long it trains, and how to have it shorter; None without one.

    values: its settings; hydra: Hydra's own; folder: the run's, beside which earlier runs are looked for.
    """
    choices, trainer = hydra.runtime.choices, values["trainer"]
    name, like = choices.get("experiment"), choices.get(LIKE)
    if not isinstance(name or like, str):
        return None
    whose = f"settings of {name}" if name else f"trained as in {like}"
    rate, where = find_rate(values, name, folder, config_dir) if name else (None, "")
    seconds = trainer["steps"] * trainer["tasks_per_step"] / rate if rate else 0
    expected = f"about {format_duration(seconds)} of training, {where}" if rate else "not timed yet"
    typed = any(text.startswith("trainer.steps=") for text in hydra.overrides.task)
    return f"{whose}: {count(trainer['steps'], 'step')}, {expected}" + (
        "" if typed else "; trainer.steps=300 is shorter"
    )


def find_rate(
    values: Mapping[str, Any], experiment: str, folder: Path, config_dir: str | None
) -> tuple[float | None, str]:
    """Tasks per second of an earlier run beside this one, or of the one that is published with metarun; and which."""
    if here := find_rates(folder.parent).get(identify(values)):
        return here, "as before"
    published = read_speeds().get(experiment)
    if published and values["device"] in ("auto", "cpu"):
        theirs = resolve(compose([f"experiment={experiment}"], config_dir))
        if identify(values) == identify({**theirs, "device": values["device"]}):
            return published[0], f"as on {published[1]}"
    return None, ""


@cache
def read_speeds() -> dict[str, tuple[float, str]]:
    """Experiment -> training tasks per second and the device, of the runs that are published with metarun."""
    found = yaml.safe_load(SPEEDS.read_text(encoding="utf-8"))
    return {str(name): (float(rate), str(device)) for name, (rate, device) in found.items()}


def find_rates(root: Path) -> dict[str, float]:
    """Setting -> training tasks per second, validation included, of the longest run of it below a folder."""
    longest: dict[str, Training] = {}
    for file in root.rglob("result.json"):
        with contextlib.suppress(ConfigError, KeyError):  # damaged; of a later test
            result = RunFolder(file.parent).result()
            if result is not None and result.training.seconds >= SETTLED:
                key = identify(result.config)
                longest[key] = max(result.training, longest.get(key, result.training), key=lambda run: run.seconds)
    return {key: training.tasks_per_second for key, training in longest.items()}


def identify(values: Mapping[str, Any]) -> str:
    """What the duration of a task depends on."""
    return repr([values[key] for key in ("algo", "backbone", "dataset", "ways", "shots", "queries", "device")])
