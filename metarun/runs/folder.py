"""A run's folder: where things are in it. Only one process at a time works there."""

import contextlib
import csv
import json
import os
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray
from omegaconf import OmegaConf
from yaml import YAMLError

from metarun.config.errors import Busy, ConfigError, Stopped
from metarun.config.load import identity, load_settings
from metarun.config.schema import Settings
from metarun.core.files import remove_scratch, write_text
from metarun.runs.result import Evaluation, Result

PLAN = "plan"  # in choices.json, beside the options of groups


@dataclass(frozen=True)
class RunFolder:
    """`config.yaml`, `metrics.jsonl`, `train.log`, `curves.png`, `checkpoints/`, `scores/`, `result.json`.

    After a failure also `error.txt`, its reason in one line.
    """

    path: Path

    @property
    def last(self) -> Path:
        return self.path / "checkpoints" / "last.pt"

    @property
    def best(self) -> Path:
        return self.path / "checkpoints" / "best.pt"

    def checkpoint(self, name: str) -> Path:
        """Return the path of the checkpoint `best`, `last` or `best-STEP`; any other name is a path itself."""
        ours = name in ("best", "last") or re.fullmatch(r"best-\d+", name)
        return self.path / "checkpoints" / f"{name}.pt" if ours else Path(name)

    def leaders(self) -> list[Path]:
        """List the checkpoints `best-STEP` by step."""
        return sorted((self.path / "checkpoints").glob("best-*.pt"), key=lambda file: int(file.stem[5:]))

    def keep_leaders(self, steps: Collection[float]) -> None:
        """Delete the checkpoints `best-STEP` of other steps."""
        for file in self.leaders():
            if int(file.stem[5:]) not in steps:
                file.unlink()

    def draft(self, row: str) -> Path:
        """Return where the scores of a row are kept while it is tested."""
        return self.path / "scores" / f"{row}.draft"

    def forget_drafts(self) -> None:
        """Delete the drafts, because the result is written."""
        for file in (self.path / "scores").glob("*.draft"):
            file.unlink()

    def check_writable(self) -> None:
        """Raise ConfigError if the folder could not be made or written in. Makes nothing."""
        check_writable(self.path, "the run folder")

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Work in the folder alone. Raises Busy if another process does, ConfigError if it cannot be written."""
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise Busy(f"another process is at work in {self.path}: wait for it, or change a setting") from error
        except OSError as error:
            raise ConfigError(f"the run folder {self.path} cannot be written: {error.strerror}") from error
        try:
            for place in (self.path, self.path / "checkpoints", self.path / "scores"):
                remove_scratch(place)
            yield
        finally:
            lock.release()

    def is_busy(self) -> bool:
        """Whether another process is at work in the folder."""
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            if Path(lock.lock_file).exists():
                lock.acquire()
                lock.release()
        except Timeout:
            return True
        return False

    @contextmanager
    def record_failure(self) -> Iterator[None]:
        """Write the first line of an error to `error.txt`. A stop by a signal is no error, nor is a busy folder."""
        try:
            yield
        except (Busy, Stopped):
            raise
        except Exception as error:
            line = str(error).partition("\n")[0] or type(error).__name__
            with contextlib.suppress(OSError):  # the folder itself may be what is wrong
                self.path.mkdir(parents=True, exist_ok=True)
                write_text(self.path / "error.txt", f"{line}\n")
            raise

    def forget_error(self) -> None:
        """Delete `error.txt`, because the run starts again."""
        (self.path / "error.txt").unlink(missing_ok=True)

    def error(self) -> str | None:
        """Why the run failed when it was last started; None if it did not."""
        file = self.path / "error.txt"
        return file.read_text(encoding="utf-8").strip() if file.is_file() else None

    @contextmanager
    def start(self, config: dict[str, Any], choices: dict[str, Any]) -> Iterator[None]:
        """Write what was asked for and, if what follows fails, why. Raises ConfigError if the folder is another run's.

        config: the resolved settings; choices: config group -> the chosen option.
        """
        self.check_same(config)
        self.forget_error()
        write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
        self._write_choices(choices, self.plan())
        with self.record_failure():
            yield

    def check_same(self, config: dict[str, Any]) -> None:
        """Raises ConfigError if the folder holds a run with other settings."""
        if not (self.path / "config.yaml").exists():
            return
        self.settings()
        if identity(self.config()) != identity(config):
            raise ConfigError(f"{self.path} holds a run with other settings: choose another folder")

    def config(self) -> dict[str, Any]:
        """Read the resolved configuration. Raises ConfigError if this is no run folder."""
        file = self.path / "config.yaml"
        if not file.is_file():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.yaml")
        try:
            values = OmegaConf.to_container(OmegaConf.load(file))
        except (ValueError, OSError, YAMLError) as error:
            raise ConfigError(f"{file} is damaged: {str(error).splitlines()[0]}") from error
        if not isinstance(values, dict) or not values:
            raise ConfigError(f"{file} is damaged: it holds no settings")
        return {str(key): value for key, value in values.items()}

    def settings(self) -> Settings:
        """Read and check the resolved configuration. Raises ConfigError, also if the file is cut short."""
        try:
            return load_settings(self.config())
        except ConfigError as error:
            ends = (line.removesuffix(": missing") for line in str(error).splitlines() if line.endswith(": missing"))
            if (missing := next(ends, None)) is None:
                raise
            file = self.path / "config.yaml"
            raise ConfigError(f"{file} is cut short, or of another version of metarun: it has no {missing}") from error

    def choices(self) -> dict[str, Any]:
        """Read which option of each config group was chosen: `fomaml` where the component is MAML."""
        values = _read_json(self.path / "choices.json")
        return {key: value for key, value in values.items() if key != PLAN}

    def plan(self) -> dict[str, Any] | None:
        """Read how the run executes its steps; None if it has not chosen yet."""
        there = (self.path / "choices.json").is_file()
        return _read_json(self.path / "choices.json").get(PLAN) if there else None

    def keep_plan(self, plan: dict[str, Any]) -> None:
        """Write how the run executes its steps, so that it does so to its last step, whatever stops it meanwhile."""
        if plan != self.plan():
            self._write_choices(self.choices(), plan)

    def _write_choices(self, choices: dict[str, Any], plan: dict[str, Any] | None) -> None:
        values = {**choices, **({PLAN: plan} if plan else {})}
        write_text(self.path / "choices.json", json.dumps(values, indent=2) + "\n")

    def result(self) -> Result | None:
        """Read the result; None before the end. Raises ConfigError if the file is damaged."""
        file = self.path / "result.json"
        if not file.is_file():
            return None
        values = _read_json(file)
        try:
            return Result.from_json(values)
        except (TypeError, KeyError, AttributeError, ValueError, ConfigError) as error:
            raise ConfigError(f"{file} is damaged, or of another version of metarun: {error!r}") from error

    def read_scores(self, row: str, metric: str) -> NDArray[np.float64] | None:
        """Read a metric of each test task of a row, [tasks]; None if the folder does not have it.

        Raises ConfigError if the file is damaged.
        """
        columns = self._read_columns(row, lambda name: name == metric)
        return None if columns is None else columns[:, 0]

    def read_classes(self, row: str) -> NDArray[np.int64] | None:
        """Read the classes of each test task of a row, [tasks, N] in the order of the labels, or its assay [tasks, 1];
        None if the folder does not have them.
        """
        columns = self._read_columns(row, lambda name: re.fullmatch(r"class(_\d+)?", name) is not None)
        return None if columns is None else columns.astype(np.int64)

    def _read_columns(self, row: str, wanted: Callable[[str], bool]) -> NDArray[np.float64] | None:
        file = self.path / "scores" / f"{row}.csv"
        if not file.is_file():
            return None
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                chosen = [i for i, name in enumerate(next(csv.reader(lines))) if wanted(name)]
                return np.loadtxt(lines, delimiter=",", usecols=chosen, ndmin=2) if chosen else None
        except (ValueError, StopIteration, OSError) as error:
            raise ConfigError(f"{file} is damaged ({str(error) or 'empty'}): delete it to go on without it") from error

    def finish(self, result: Evaluation) -> None:
        """Write the result."""
        write_text(self.path / "result.json", json.dumps(result.to_json(), indent=2, allow_nan=False) + "\n")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise ConfigError(f"{file.parent} is not a whole run folder: it has no {file.name}") from error
    except (ValueError, TypeError, OSError) as error:
        raise ConfigError(f"{file} is damaged: {error}") from error


def check_writable(path: Path, what: str) -> None:
    """Raise ConfigError, which calls the folder `what`, if it could not be made or written in. Makes nothing."""
    try:
        there = next(folder for folder in (path, *path.parents) if folder.exists())
    except (OSError, ValueError) as error:  # a name that is too long, or that holds a null byte
        raise ConfigError(f"{what} {path} cannot be made: {getattr(error, 'strerror', error)}") from error
    if not there.is_dir():
        raise ConfigError(f"{what} {path} cannot be made: {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{what} {path} cannot be written: no permission for {there}")
