"""Files of weights that settings name: checked before a run starts, and hashed, so that it never takes others later."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from metarun.config.errors import ConfigError
from metarun.config.schema import Settings
from metarun.core.inner import draw_theta
from metarun.core.types import Theta
from metarun.engine import checkpoint
from metarun.engine.build import Experiment
from metarun.runs.folder import RunFolder

OTHER_RUN = "choose another folder by hydra.run.dir=..."
NAMES = ("best", "last", "ensemble")  # of a run's own checkpoints


def find_files(settings: Settings, folder: RunFolder) -> Iterator[tuple[str, Path]]:
    """The settings that name a file which is not the run's own, and that file."""
    if settings.init_from is not None:
        yield "init_from", Path(settings.init_from)
    tested = folder.checkpoint(settings.eval.checkpoint)
    if settings.eval.checkpoint not in NAMES and not tested.is_relative_to(folder.path):
        yield "eval.checkpoint", tested


def hash_files(settings: Settings, folder: RunFolder) -> dict[str, str]:
    """Setting -> hash of its file, of those that are there."""
    files = {name: path for name, path in find_files(settings, folder) if path.is_file()}
    return {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}


def check_files(settings: Settings, folder: RunFolder, recorded: Mapping[str, str], remedy: str = OTHER_RUN) -> None:
    """Raise ConfigError if a file is there and is not what the run in the folder has read.

    recorded: what `hash_files` gave then; remedy: what to do if the first file is gone for good.
    """
    for name, found in hash_files(settings, folder).items():
        if recorded.get(name, found) != found:
            raise ConfigError(
                f"{folder.path} has read another file than {name}={dict(find_files(settings, folder))[name]} is now "
                f"(sha256 was {recorded[name][:12]}..., is {found[:12]}...): "
                f"put the first file back, or {remedy}"
            )


def check_weights(experiment: Experiment, folder: RunFolder) -> None:
    """Raise ConfigError if a setting names something else than a checkpoint of this model. What a run that goes on once
    started from is not read again.
    """
    for name, path in find_files(experiment.settings, folder):
        if name == "init_from" and folder.last.is_file():
            continue
        if path.is_dir():
            best = RunFolder(path).best
            there = f": name a checkpoint in it, {best}" if best.is_file() else ", which holds no checkpoints"
            raise ConfigError(f"{name} is the folder {path}{there}")
        if not path.is_file():
            others = "it must be best, last, ensemble or a file; " if name == "eval.checkpoint" else ""
            raise ConfigError(f"{name} is {str(path)!r}: {others}there is no such file")
        try:
            check_shapes(experiment, path, checkpoint.load(path)[0].get("theta", {}))
        except ConfigError as error:
            raise ConfigError(f"{name}: {error}") from error


def check_shapes(experiment: Experiment, path: Path | None, theta: Theta) -> None:
    """Raise ConfigError if the weights of a checkpoint are of another model."""

    def shapes(theta: Theta) -> dict[str, dict[str, torch.Size]]:
        return {component: {name: p.shape for name, p in params.items()} for component, params in theta.items()}

    if shapes(theta) != shapes(draw_theta(experiment.algo, experiment.settings.seed)):
        raise ConfigError(f"the checkpoint {path} is of another model: its weights have other names or shapes")
