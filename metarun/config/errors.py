"""Errors whose text is meant for the user, shown without a traceback. Never imports torch."""

import difflib
import errno
import os
import re
import sys
import traceback
from collections.abc import Collection

from metarun.config.words import make_inert

FAILURE, INTERRUPTED = 1, 130
MANY = 12  # names, of which a message lists the nearest few alone
SHORTAGES = (  # errors of the system that are no mistake in the program
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE,
    errno.ENFILE, errno.ENOMEM,
)  # fmt: skip


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
        text = make_inert(str(error))
        lines = text.splitlines() if isinstance(error, ConfigError) else [text]  # a problem each; a summary
        print(*(f"metarun: {line}" for line in lines), sep="\n", file=sys.stderr)
        return error.exit_code
    if isinstance(error, OSError) and (error.filename is not None or explain_shortage(error)):  # outside of metarun
        print(f"metarun: {make_inert(explain_os_error(error))}", file=sys.stderr)
        return FAILURE
    if isinstance(error, KeyboardInterrupt):
        print("stopped; the same command again goes on from what is saved", file=sys.stderr)
        return INTERRUPTED
    traceback.print_exception(error)
    return FAILURE


def explain_os_error(error: OSError) -> str:
    """The file or folder that an error is about, and the system's reason."""
    return f"{error.filename}: {error.strerror}" if error.filename is not None else str(error.strerror or error)


def find_reason(error: Exception) -> str:
    """The first line of an error, without the name of the exception that OmegaConf writes before it."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    line = re.sub(r"^\w+ raised while resolving interpolation: ", "", line).strip('"')
    return re.sub(r"Cannot convert '\w+' to string.*", "it is no text", line)


def explain_shortage(error: BaseException) -> str | None:
    """Return what the system refused, and for which file: a full disk, a read-only folder. None for another error."""
    return explain_os_error(error) if isinstance(error, OSError) and error.errno in SHORTAGES else None


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return " (did you mean X?)", or nothing if no known word is near."""
    near = difflib.get_close_matches(word, [str(name) for name in known], n=1, cutoff=0.6)
    return f" (did you mean {near[0]}?)" if near else ""


def offer(word: str, known: Collection[str], group: str | None = None) -> str:
    """Return "choose from A, B (did you mean A?)"; of many names the nearest five.

    group: that of `metarun list GROUP`, which shows all.
    """
    if len(known) <= MANY:
        return f"choose from {', '.join(known)}{did_you_mean(word, known)}"
    nearest = difflib.get_close_matches(word, list(known), n=5, cutoff=0.0)
    shown = f"; metarun list {group} shows all" if group else ""
    return f"the nearest of {len(known)} are {', '.join(nearest)}{shown}"


def instead(word: str, known: Collection[str]) -> str:
    """Return a hint at the nearest known word, or at all of them if none is near."""
    return did_you_mean(word, known) or (f": choose from {', '.join(known)}" if known else "")
