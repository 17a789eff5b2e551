"""What a run writes while it goes: metrics files, a text log, a progress bar, and what loggers are told."""

import csv
import io
import json
import logging
import math
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metarun.config.registry import known, style
from metarun.config.words import make_inert, printable
from metarun.core.files import write_text
from metarun.runs.loggers import Logger
from metarun.runs.result import replace_infinite

say = logging.getLogger("metarun")
SILENCE = 50.0  # seconds after which a log that nobody watches says that work goes on


class RunLog:
    """`metrics.jsonl`, one line per log point, and everything that shows the same numbers.

    The file holds nothing but what the seed determines, so that a resumed run writes the same bytes.
    """

    def __init__(self, folder: Path, logger: Logger, step: int = 0) -> None:
        """Continue the metrics file after `step`; drop what a killed run wrote beyond its checkpoint."""
        self.path = folder / "metrics.jsonl"
        self.logger = logger
        kept = [line for line in _read_lines(self.path) if _step_of(line) <= step]
        write_text(self.path, "".join(kept))
        self._bar: tqdm[Any] | None = None
        self._shown: dict[str, str] = {}

    def bar(self, step: int, steps: int) -> "tqdm[Any]":
        """Return a progress bar with the time left; one without output where standard error is no terminal."""
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
        """Write the values of a step to the file, the logger, the progress bar and the text log."""
        with self.path.open("a", encoding="utf-8") as file:
            line = replace_infinite({"step": step, "split": split, **values})
            file.write(json.dumps(line, allow_nan=False) + "\n")
        scalars = {name: value for name, value in values.items() if isinstance(value, int | float)}
        self.logger.write(step, {f"{split}/{name}": value for name, value in scalars.items()})
        self._show(step, split, scalars)

    def _show(self, step: int, split: str, scalars: dict[str, float]) -> None:
        texts = {name: style(name).shown(scalars[name]) for name in ("loss", *known("metric")) if name in scalars}
        prefix = "" if split == "train" else f"{split} "
        self._shown |= {prefix + name: text for name, text in texts.items()}
        if self._bar is not None:
            self._bar.set_postfix(self._shown)
        text = ", ".join(f"{name} {text}" for name, text in texts.items())
        watched = sys.stderr.isatty()  # then the bar shows the training
        say.log(logging.DEBUG if watched and split == "train" else logging.INFO, "step %d: %s %s", step, split, text)

    def close(self) -> None:
        """Write `metrics.csv`, the same lines as a table, and close the logger."""
        rows = [json.loads(line) for line in _read_lines(self.path)]
        columns = list(dict.fromkeys(name for row in rows for name in row))
        table = io.StringIO(newline="")
        writer = csv.DictWriter(table, columns)
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.path.with_suffix(".csv"), table.getvalue())
        self.logger.close()


def _read_lines(path: Path) -> list[str]:
    """Read the complete lines of a file: a kill may have cut the last one short."""
    if not path.exists():
        return []
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _step_of(line: str) -> float:
    """The step of a line; infinite for a damaged one, so that it is dropped."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError):
        return math.inf


@contextmanager
def speak(silence: float = SILENCE) -> Iterator[None]:
    """Show messages on the terminal, and where it is none, as in a CI log, say every `silence` seconds what goes on."""
    say.setLevel(logging.DEBUG)
    say.propagate = False
    if any(isinstance(handler, Terminal) for handler in say.handlers):
        yield
        return
    terminal, ended = Terminal(logging.INFO), threading.Event()
    say.addHandler(terminal)
    pulse = threading.Thread(target=terminal.repeat, args=(silence, ended), daemon=True)
    if not sys.stderr.isatty():
        pulse.start()
    try:
        yield
    finally:
        ended.set()
        say.removeHandler(terminal)


def log_to(folder: Path) -> logging.Handler:
    """Send messages, with all details, to `train.log` too. Returns the file's handler."""
    file = LogFile(folder / "train.log", encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    say.addHandler(file)
    return file


class LogFile(logging.FileHandler):
    """A log whose failure, as on a full disk, ends the run like that of any other file."""

    def format(self, record: logging.LogRecord) -> str:
        return make_inert(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:
        raise


class Terminal(logging.Handler):
    """Lines on the terminal that do not break a progress bar."""

    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.last, self.since = "started", time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        self.last, self.since = self.format(record), time.monotonic()
        tqdm.write(printable(self.last), file=sys.stdout)

    def repeat(self, silence: float, ended: threading.Event) -> None:
        """Until the end, say that work goes on whenever nothing was said for `silence` seconds."""
        told = self.since
        while not ended.wait(max(0.0, silence - (time.monotonic() - max(told, self.since)))):
            now = time.monotonic()
            if now - max(told, self.since) >= silence:
                tqdm.write(printable(f"still at work, {now - self.since:.0f} s after: {self.last}"), file=sys.stdout)
                told = now
