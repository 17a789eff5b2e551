"""Errors whose text is meant for the user, shown without a traceback. Never imports torch."""

import difflib
import os
import sys
import traceback
from collections.abc import Collection

FAILURE, INTERRUPTED = 1, 130


class ConfigError(Exception):
    """A mistake in the request: in a setting, a file or a name."""

    exit_code = 2


class Busy(ConfigError):
    """Another process is at work on the same run."""


class Failed(Exception):
    """The run itself went wrong: its settings hold no mistake."""

    exit_code = FAILURE


class Stopped(Exception):
    """A signal ended the run early, after it was saved."""

    exit_code = INTERRUPTED


def report_error(error: BaseException) -> int:
    """Print one line for an error that the user can act on, a traceback for any other. Returns the exit code."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else FAILURE
    if isinstance(error, BrokenPipeError):  # the reader of our output left, as head does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    if isinstance(error, ConfigError | Failed | Stopped):
        print(f"metarun: {error}", file=sys.stderr)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        print("stopped; the same command again goes on from what is saved", file=sys.stderr)
        return INTERRUPTED
    traceback.print_exception(error)
    return FAILURE


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return " (did you mean X?)", or nothing if no known word is near."""
    near = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def instead(word: str, known: Collection[str]) -> str:
    """Return a hint at the nearest known word, or at all of them if none is near."""
    return did_you_mean(word, known) or (f": choose from {', '.join(known)}" if known else "")
