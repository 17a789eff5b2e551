"""A run's folder: where things are in it, and that only one process at a time works there."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from omegaconf import OmegaConf
from yaml import YAMLError

from metarun.settings import ConfigError


@dataclass(frozen=True)
class RunFolder:
    """`config.yaml`, `metrics.jsonl`, `train.log`, `curves.png`, `checkpoints/`, `scores/`, `result.json`."""

    path: Path

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    def checkpoint(self, name: str) -> Path:
        """`best`, `last`, or a path."""
        return {"best": self.best, "last": self.last}.get(name, Path(name))

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Raises ConfigError where the folder cannot be written, or another process is at work in it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / ".lock", timeout=0)
            with lock:
                yield
        except Timeout as error:
            raise ConfigError(f"another process is at work in {self.path}: wait for it, or change a setting") from error
        except (PermissionError, NotADirectoryError, FileExistsError) as error:
            raise ConfigError(f"the run folder {self.path} cannot be written: {error.strerror}") from error

    def start(self, config: dict[str, Any], choices: dict[str, Any]) -> None:
        """Write what was asked for. Raises ConfigError if the folder holds a run with other settings."""
        file = self.path / "config.yaml"
        if file.exists() and self.config() != config:
            raise ConfigError(f"{self.path} holds a run with other settings: choose another folder")
        write_text(file, OmegaConf.to_yaml(OmegaConf.create(config)))
        write_text(self.path / "choices.json", json.dumps(choices, indent=2) + "\n")

    def config(self) -> dict[str, Any]:
        """The resolved configuration. Raises ConfigError where this is no run folder."""
        file = self.path / "config.yaml"
        if not file.is_file():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.yaml")
        try:
            return {str(key): value for key, value in OmegaConf.to_container(OmegaConf.load(file)).items()}  # type: ignore[union-attr]
        except (AttributeError, ValueError, OSError, YAMLError) as error:
            raise ConfigError(f"{file} is damaged: {str(error).splitlines()[0]}") from error

    def choices(self) -> dict[str, Any]:
        """Which option of each config group was chosen: `fomaml` where the component is MAML."""
        return dict(json.loads((self.path / "choices.json").read_text(encoding="utf-8")))

    def result(self) -> dict[str, Any] | None:
        """The test result, or None before the end."""
        file = self.path / "result.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def finish(self, result: dict[str, Any]) -> None:
        write_text(self.path / "result.json", json.dumps(result, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
