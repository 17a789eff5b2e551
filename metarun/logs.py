"""What a run writes while it goes: metrics files, a text log, a progress bar, and loggers of other projects."""

import csv
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from tqdm import tqdm

from metarun.objectives import METRICS
from metarun.registry import register

say = logging.getLogger("metarun")


class Logger(Protocol):
    """A service that draws curves."""

    def open(self, folder: Path, config: dict[str, Any]) -> None: ...
    def write(self, step: int, values: dict[str, float]) -> None: ...
    def close(self) -> None: ...


class Log(Protocol):
    """What the training loop tells."""

    def bar(self, step: int, steps: int) -> tqdm: ...
    def metrics(self, step: int, split: str, values: dict[str, Any]) -> None: ...
    def close(self) -> None: ...


class Silence:
    """The log of a process that only helps."""

    def bar(self, step: int, steps: int) -> tqdm:
        return tqdm(disable=True)

    def metrics(self, step: int, split: str, values: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


class RunLog:
    """`metrics.jsonl`, one line per log point, and everything that shows the same numbers.

    The file holds nothing but what the seed determines, so that a resumed run writes the same bytes.
    """

    def __init__(self, folder: Path, logger: Logger, step: int = 0) -> None:
        """Continue the metrics file after `step`: what a killed run wrote beyond its checkpoint is dropped."""
        self.path = folder / "metrics.jsonl"
        self.logger = logger
        kept = [line for line in _complete_lines(self.path) if json.loads(line)["step"] <= step]
        self.path.write_text("".join(kept), encoding="utf-8")
        self._bar: tqdm | None = None
        self._shown: dict[str, str] = {}

    def bar(self, step: int, steps: int) -> tqdm:
        """A progress bar with time left; in a log file, where bars do not belong, there are lines instead."""
        self._bar = tqdm(
            initial=step,
            total=steps,
            desc="train",
            unit="step",
            dynamic_ncols=True,
            disable=not sys.stderr.isatty(),
        )
        return self._bar

    def metrics(self, step: int, split: str, values: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, "split": split, **values}) + "\n")
        scalars = {name: value for name, value in values.items() if isinstance(value, int | float)}
        self.logger.write(step, {f"{split}/{name}": value for name, value in scalars.items()})
        self._show(step, split, scalars)

    def _show(self, step: int, split: str, scalars: dict[str, float]) -> None:
        names = [name for name in ("loss", *METRICS) if name in scalars]
        prefix = "" if split == "train" else f"{split} "
        self._shown |= {prefix + name: f"{scalars[name]:.4f}" for name in names}
        if self._bar is not None:
            self._bar.set_postfix(self._shown)
        text = ", ".join(f"{name} {scalars[name]:.4f}" for name in names)
        say.log(logging.INFO if split == "val" else logging.DEBUG, "step %d: %s %s", step, split, text)

    def close(self) -> None:
        """Write `metrics.csv`, the same lines as a table, and close the logger."""
        rows = [json.loads(line) for line in _complete_lines(self.path)]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        with self.path.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)
        self.logger.close()


def _complete_lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def log_to(folder: Path) -> logging.Handler:
    """Send messages to the terminal and, with all details, to `train.log`; returns the file's handler."""
    say.setLevel(logging.DEBUG)
    say.propagate = False
    if not any(isinstance(handler, Terminal) for handler in say.handlers):
        say.addHandler(Terminal(logging.INFO))
    file = logging.FileHandler(folder / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    say.addHandler(file)
    return file


class Terminal(logging.Handler):
    """Lines on the terminal that do not break a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stdout)


@register("logger", "none")
@dataclass
class NoLogger:
    """Files in the run folder only."""

    def open(self, folder: Path, config: dict[str, Any]) -> None: ...

    def write(self, step: int, values: dict[str, float]) -> None: ...

    def close(self) -> None: ...


@register("logger", "tensorboard")
@dataclass
class TensorBoard:
    """Event files under the run folder, for `tensorboard --logdir outputs`."""

    needs: ClassVar[str] = "tensorboard"

    def open(self, folder: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        self._writer.close()


@register("logger", "wandb")
@dataclass
class WandB:
    """Weights & Biases; a resumed run continues the same curve."""

    project: str
    mode: str
    needs: ClassVar[str] = "wandb"

    def open(self, folder: Path, config: dict[str, Any]) -> None:
        import wandb

        identifier = f"{folder.parent.name}-{folder.name}"
        self._run = wandb.init(
            project=self.project,
            mode=self.mode,
            dir=str(folder),
            config=config,
            id=identifier,
            resume="allow",
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        self._run.log(values, step=step)

    def close(self) -> None:
        self._run.finish()
